"""The settings of an audit, checked before any work is done."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from trl_attribution.activations.config import PassConfig
from trl_attribution.errors import SettingsError
from trl_attribution.models.config import LoadConfig
from trl_attribution.pairs import Encoding, Reading
from trl_attribution.pairs.own_responses import OwnConfig
from trl_attribution.scoring.kinds import AskedKind
from trl_attribution.utils.dtypes import DTYPES

WITNESS_FILE = "witness.parquet"
_CHOICES = {"dtype": ("auto", *DTYPES), "vector_dtype": DTYPES, "score": get_args(AskedKind)}


@dataclass(frozen=True)
class AuditConfig(LoadConfig, PassConfig):
    """How an audit is made; stored with its results.

    Raises:
        SettingsError: a setting is out of range or unknown.
    """

    layers: tuple[int, ...] | None = field(default=None, metadata={"option": "layer"})
    """Layers to compute and store; None takes the layers that the probes flag at."""
    vector_dtype: str = "float16"
    """How vectors are stored: float16, bfloat16 or float32."""
    encoding: Encoding = field(default_factory=Encoding)
    """Truncation, as DPOTrainer's."""
    reading: Reading = field(default_factory=Reading)
    """Column names, format, split, and what to do about bad rows."""
    own: OwnConfig = field(default_factory=OwnConfig)
    """M0's own responses, the other side of examples that have only one."""
    score: AskedKind = "auto"
    """Kind of score; auto is one-sided for SFT samples, else controlled for probes that know controls and contextual
    for others that know prompts."""
    shard_size: int = 512
    """Pairs in one file of the vector store: what a killed run loses at most."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shard_size < 1:
            raise SettingsError(f"shard_size: {self.shard_size} is not positive; 512 is the default")
        # All choices are checked here, not where they are used: that may be hours later.
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise SettingsError(f"{name}: {getattr(self, name)!r} is unknown; choose {', '.join(choices)}")
        given: Any = self.layers  # callers without a type checker give 20, or ["20"]
        if given is None:
            return
        layers = tuple(given) if isinstance(given, Iterable) else (given,)
        if not all(isinstance(layer, int) and not isinstance(layer, bool) for layer in layers):
            raise SettingsError(f"layers: {given!r} are not whole numbers; give a list such as [20]")
        object.__setattr__(self, "layers", layers)

    def to_json(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class WitnessConfig:
    """Whether a second witness is heard.

    Raises:
        SettingsError: unknown pairs.
    """

    witness: Literal["near", "all", "none"] = "near"
    """Pairs to ask M0 about under each probe's description: those at and near the threshold, all, or none."""

    def __post_init__(self) -> None:
        if self.witness not in ("near", "all", "none"):
            raise SettingsError(f"witness: {self.witness!r} is unknown; choose near, all or none")
