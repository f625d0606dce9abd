"""Which M0 a run began with, kept beside its audit: a resumed run's policy is no longer it."""

from __future__ import annotations

import json
from pathlib import Path

from trl_attribution.atomic import write_json
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
