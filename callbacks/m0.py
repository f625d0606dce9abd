"""Which M0 a run began with, kept beside its audit: a resumed run's policy is no longer it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import torch

from trl_attribution.atomic import write_json
from trl_attribution.distributed import full_parameter
from trl_attribution.errors import SettingsError
from trl_attribution.fingerprint import ModelFingerprint
from trl_attribution.models import LoadedModel

_FILE = "m0.json"
_FORMAT = "trl-attribution m0"
_VERSION = 1


def write_m0(folder: Path, m0: LoadedModel) -> None:
    """Note M0's name and fingerprint in the audit folder."""
    header = {"format": _FORMAT, "format_version": _VERSION}
    write_json(folder / _FILE, {**header, "name": m0.name, "fingerprint": m0.fingerprint.to_json()})


def read_m0(folder: Path) -> ModelFingerprint | None:
    """The fingerprint of the M0 that a run began with, None where no run has begun.

    Raises:
        SettingsError: the file is broken, or a newer version wrote it.
    """
    path = folder / _FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["format"] != _FORMAT or values["format_version"] > _VERSION:
            raise SettingsError(f"{path} was written by something else or newer. Use another audit folder.")
        return ModelFingerprint.from_json(values["fingerprint"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingsError(f"cannot read {path}: {error}. Remove it and train from the start.") from error


def with_adapter(identity: ModelFingerprint, model: torch.nn.Module) -> ModelFingerprint:
    """The identity of a model that is M0 together with its adapter ``ref``: not the one of the model below.

    Probes have to be built on the same M0, so those of the base model are refused.
    """
    digest = hashlib.sha256(identity.weights.encode())
    for name, parameter in sorted(model.named_parameters(), key=lambda item: item[0]):
        if ".ref." in name:
            with full_parameter(parameter) as whole:
                digest.update(name.encode())
                digest.update(whole.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes())
    return replace(identity, weights=digest.hexdigest()[:32])
