"""What the vectors of a store were made with, and ``store.json``, which keeps it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trl_attribution.errors import SettingsError, StoreError
from trl_attribution.utils.atomic import write_json
from trl_attribution.utils.dtypes import DTYPES
from trl_attribution.utils.format_version import check_format_version

STORE_FORMAT = "trl-attribution vectors"
STORE_VERSION = 1


@dataclass(frozen=True)
class StoreSettings:
    """What the vectors of one store were made with; a store takes no vectors made any other way.

    Raises:
        SettingsError: no layers, a repeated or negative layer, no hidden size, or an unknown ``vector_dtype``.
    """

    model_fingerprint: str
    layers: tuple[int, ...]
    hidden_size: int
    vector_dtype: str = "float16"
    """How vectors are stored: float16, bfloat16 or float32."""
    compute_dtype: str = "bfloat16"
    pooling: str = "mean_response"
    max_length: int | None = 1024
    truncation_mode: str = "keep_start"

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        if not self.layers or len(set(self.layers)) != len(self.layers) or min(self.layers) < 0:
            raise SettingsError(f"layers must be one or more different layers from 0 up, not {self.layers}")
        if self.hidden_size < 1:
            raise SettingsError(f"hidden_size must be at least 1, not {self.hidden_size}")
        if self.vector_dtype not in DTYPES:
            raise SettingsError(f"vector_dtype {self.vector_dtype!r} is unknown; choose one of {', '.join(DTYPES)}")

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON holds them (layers a list)."""
        return {**dataclasses.asdict(self), "layers": list(self.layers)}

    @property
    def digest(self) -> str:
        """SHA-256 of the settings; every shard carries it, so a shard of another run is recognised."""
        return hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()


def write_settings(folder: Path, settings: StoreSettings) -> None:
    """Write ``store.json`` into ``folder``, atomically.

    Raises:
        AttributionError: the folder cannot be written.
    """
    header = {"format": STORE_FORMAT, "format_version": STORE_VERSION, "settings": settings.as_dict()}
    write_json(folder / "store.json", header)


def read_settings(folder: Path) -> StoreSettings:
    """The settings of the store at ``folder``.

    Raises:
        StoreError: there is no store, or its ``store.json`` is broken or of a newer version.
    """
    path = folder / "store.json"
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreError(f"there is no vector store at {folder}: it has no store.json. Run an audit first.") from None
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot read {path}: {error}. Restore it, or audit again into another folder.") from error
    if not isinstance(header, dict) or header.get("format") != STORE_FORMAT:
        raise StoreError(f"{path} does not describe a vector store; choose another folder")
    check_format_version(header.get("format_version"), STORE_VERSION, path)
    try:
        return StoreSettings(**header["settings"])
    except (KeyError, TypeError, SettingsError) as error:
        raise StoreError(f"{path} is broken: bad settings ({error}). Audit again into another folder.") from error
