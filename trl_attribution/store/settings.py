"""What the vectors of a store were made with."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any, ClassVar

from trl_attribution.errors import SettingsError
from trl_attribution.utils.dtypes import DTYPES


@dataclass(frozen=True)
class StoreSettings:
    """What the vectors of one store were made with; a store takes no vectors made any other way.

    Raises:
        SettingsError: no layers, a repeated or negative layer, no hidden size, or an unknown ``vector_dtype``.
    """

    # A setting that is not known here decides what vectors mean too.
    __pydantic_config__: ClassVar = {"extra": "forbid"}

    model_fingerprint: str
    layers: tuple[int, ...]
    hidden_size: int
    vector_dtype: str = "float16"
    """How vectors are stored: float16, bfloat16 or float32."""
    compute_dtype: str = "bfloat16"
    pooling: str = "mean_response"
    max_length: int | None = 1024
    truncation_mode: str = "keep_start"
    own_responses: str = ""
    """Digest of M0's own responses, where they are one side of an example; "" where all examples have both."""
    whole_prompts: bool = False
    """Whether prompts were kept whole where responses part from them earlier, as TRL does before 1.14.2."""

    vision: str = ""
    """Digest of what images go through; "" where no dataset of images was read."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        if not self.layers or len(set(self.layers)) != len(self.layers) or min(self.layers) < 0:
            raise SettingsError(f"layers must be one or more different layers from 0 up, not {self.layers}")
        if self.hidden_size < 1:
            raise SettingsError(f"hidden_size must be at least 1, not {self.hidden_size}")
        if self.vector_dtype not in DTYPES:
            raise SettingsError(f"vector_dtype {self.vector_dtype!r} is unknown; choose one of {', '.join(DTYPES)}")

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON holds them (layers a list); what older releases do not know only where it matters."""
        values = {**dataclasses.asdict(self), "layers": list(self.layers)}
        return {
            name: value
            for name, value in values.items()
            if value or name not in ("own_responses", "whole_prompts", "vision")
        }

    @property
    def digest(self) -> str:
        """SHA-256 of the settings; every shard carries it, so a shard of another run is recognised."""
        return hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()
