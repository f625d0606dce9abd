"""Which M0 a run began with, and M0 once more by its name: what is trained is no longer it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from trl_attribution.callbacks.checkpoint import Identity
from trl_attribution.errors import AttributionError, SettingsError
from trl_attribution.models import LoadedModel, load_model
from trl_attribution.models.fingerprint import ModelFingerprint
from trl_attribution.models.sharding import sharding_of
from trl_attribution.utils.atomic import write_json
from trl_attribution.utils.distributed import random_state_kept

_FILE = "m0.json"
_FORMAT = "trl-attribution m0"
_VERSION = 1


def write_m0(folder: Path, m0: LoadedModel, *, is_in_memory: bool) -> None:
    """Note in the audit folder which M0 a run began with, and whether the trainer's own model was it."""
    about = {"name": m0.name, "fingerprint": m0.fingerprint.to_json(), "in_memory": is_in_memory}
    write_json(folder / _FILE, {"format": _FORMAT, "format_version": _VERSION, **about})


def read_m0(folder: Path) -> Identity | None:
    """The M0 that a run began with, None where no run has begun.

    Raises:
        SettingsError: the file is broken, or a newer version wrote it.
    """
    path = folder / _FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["format"] != _FORMAT or values["format_version"] > _VERSION:
            raise SettingsError(f"{path} was written by something else or newer. Use another audit folder.")
        return Identity(ModelFingerprint.from_json(values["fingerprint"]), bool(values.get("in_memory", True)))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingsError(f"cannot read {path}: {error}. Remove it and train from the start.") from error


def reloaded(m0: LoadedModel, device: str, need: str) -> LoadedModel:
    """M0 once more, beside the model that is trained; in pieces where ranks share that one, which all call this then.

    Args:
        m0: the model that was M0, with its name and fingerprint.
        device: where to put it.
        need: what it is needed for and why the trained model will not do, for the message.

    Raises:
        SettingsError: there is no such model any more, or it is another one.
    """
    fault = None
    try:
        with random_state_kept():
            found = load_model(m0.name, m0.dtype, device, sharding=sharding_of(m0.model), with_head=True)
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
        "or train with a reference model of its own (ref_model=..., precompute_ref_log_probs=False)."
    )
