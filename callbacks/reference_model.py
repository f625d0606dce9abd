"""Which reference model (M0) a run began with, and how to load it again where the trainer no longer has it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from trl_attribution.audit.info import Fingerprint
from trl_attribution.callbacks.checkpoint import Identity
from trl_attribution.errors import AttributionError, SettingsError
from trl_attribution.models import LoadedModel, load_model
from trl_attribution.models.quantization import quantization_again
from trl_attribution.models.sharding import sharding_of
from trl_attribution.utils.distributed import random_state_kept
from trl_attribution.utils.json_file import JsonFile


class ReferenceRecord(JsonFile):
    """The content of ``m0.json``: the reference model that a run began with."""

    FORMAT = "trl-attribution m0"
    ADVICE = "Remove it and train from the start, or use another audit folder."
    ERROR = SettingsError

    name: str
    fingerprint: Fingerprint
    in_memory: bool = True
    """Whether the trainer's own model was it."""


def write_m0(folder: Path, m0: LoadedModel, *, is_in_memory: bool) -> None:
    """Note in the audit folder which M0 a run began with, and whether the trainer's own model was it."""
    record = ReferenceRecord(name=m0.name, fingerprint=m0.fingerprint, in_memory=is_in_memory)
    record.write(folder / "m0.json")


def read_m0(folder: Path) -> Identity | None:
    """The M0 that a run began with, None where no run has begun.

    Raises:
        SettingsError: the file is broken, or a newer version wrote it.
    """
    record = ReferenceRecord.read(folder / "m0.json")
    return None if record is None else Identity(record.fingerprint, record.in_memory)


_OF_ITS_OWN = "train with a reference model of its own (ref_model=..., precompute_ref_log_probs=False)"


def reloaded(m0: LoadedModel, device: str, need: str, otherwise: str = _OF_ITS_OWN) -> LoadedModel:
    """M0 once more, beside the model that is trained; in pieces where ranks share that one, which all call this then.

    Args:
        m0: the model that was M0, with its name and fingerprint.
        device: where to put it.
        need: what it is needed for and why the trained model will not do, for the message.
        otherwise: what else would help, for the message.

    Raises:
        SettingsError: there is no such model any more, or it is another one.
    """
    fault = None
    try:
        with random_state_kept():
            found = load_model(
                m0.name,
                m0.dtype,
                device,
                sharding=sharding_of(m0.model),
                with_head=True,
                quantization=quantization_again(m0.model),
            )
        differences = [part for part in found.fingerprint.differences(m0.fingerprint) if part != "chat_template"]
        if not differences:  # the tokenizer is the trainer's, whatever lies beside the model
            return replace(found, tokenizer=m0.tokenizer, fingerprint=m0.fingerprint)
        fault = (
            f"its {' and '.join(differences)} differ from M0's ({found.fingerprint.digest}, {m0.fingerprint.digest})"
        )
    except AttributionError as error:
        fault = str(error)
    raise SettingsError(
        f"{need}, and it cannot be loaded anew from {m0.name!r}: {fault}. Load the model from a folder or a Hub id, "
        f"or {otherwise}."
    )
