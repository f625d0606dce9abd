"""The callback's settings, flat, so that a command-line parser (TrlParser) can fill them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from trl_attribution.activations.config import ActivationConfig
from trl_attribution.activations.config import Path as PassPath
from trl_attribution.audit.config import AuditConfig
from trl_attribution.behaviors.sampling import SamplingConfig
from trl_attribution.errors import SettingsError
from trl_attribution.pairs.own_responses import OwnConfig
from trl_attribution.scoring.kinds import AskedKind
from trl_attribution.scoring.rule import DEFAULT_RULE, Rule
from trl_attribution.utils.declared import taken

T = TypeVar("T")


@dataclass(frozen=True)
class CallbackConfig:
    """How a training run is audited; stored with the audit.

    What other settings declare is taken from there, with its default, its explanation and its checks.

    Raises:
        SettingsError: a setting is unknown, out of range, or contradicts another.
    """

    output_dir: str = field(default="audit", metadata={"help": "The audit folder to make or go on with."})
    probes: str | None = field(default=None, metadata={"help": "Folder of probes to score against."})
    behaviors: str | None = field(
        default=None,
        metadata={"help": "JSONL file or folder of prompts to sample on before and after training."},
    )
    layers: list[int] | None = taken(AuditConfig, "layers")
    score: AskedKind = taken(AuditConfig, "score")
    top_k: int | None = taken(Rule, "top_k")
    threshold: float | None = taken(Rule, "threshold")
    fdr: float | None = taken(Rule, "fdr")
    recall: float | None = taken(Rule, "recall")
    on_flag: Literal["log", "stop", "skip"] = field(
        default="log",
        metadata={"help": "log; stop: end training when stop_share is passed; skip: flagged pairs get no weight."},
    )
    weights: str | None = field(
        default=None,
        metadata={"help": "Column with each pair's weight in the loss, as apply --action weight writes it."},
    )
    flag_at: float | None = field(
        default=None,
        metadata={
            "help": "Score from which a pair counts as flagged while training; left out: the 99th percentile of a "
            "calibrated probe's clean pairs."
        },
    )
    stop_share: float = field(
        default=0.1, metadata={"help": "on_flag=stop: flagged share of a logging window that ends training."}
    )
    stop_window: int = field(
        default=1, metadata={"help": "on_flag=stop: how many logging windows the share is taken over."}
    )
    vector_dtype: str = taken(AuditConfig, "vector_dtype")
    shard_size: int = taken(AuditConfig, "shard_size")
    blocks_path: str | None = taken(AuditConfig, "blocks_path")
    token_budget: int | None = taken(AuditConfig, "token_budget")
    own_responses: str | None = taken(OwnConfig, "file")
    own_samples: int = taken(OwnConfig, "n")
    own_max_new_tokens: int = taken(OwnConfig, "max_new_tokens")
    own_seed: int = taken(OwnConfig, "seed")
    judge: str = field(
        default="complies", metadata={"help": "Which responses show a behavior, where its file does not say."}
    )
    samples: int = taken(SamplingConfig, "n")
    max_new_tokens: int = taken(SamplingConfig, "max_new_tokens")
    temperature: float = taken(SamplingConfig, "temperature")
    sampling_batch_size: int = taken(SamplingConfig, "batch_size")
    seed: int = taken(SamplingConfig, "seed")
    drift_pairs: int = field(
        default=32, metadata={"help": "Pairs that the drift between M0 and M1 is measured on; 0 leaves it out."}
    )

    def __post_init__(self) -> None:
        if self.on_flag not in ("log", "stop", "skip"):
            raise SettingsError(f"on_flag: {self.on_flag!r} is unknown; choose log, stop, skip")
        if not 0 < self.stop_share <= 1:
            raise SettingsError(f"stop_share: {self.stop_share} is no share; give a number above 0 and up to 1")
        if self.stop_window < 1:
            raise SettingsError(f"stop_window: {self.stop_window} is no number of windows; give 1 or more")
        if self.drift_pairs < 0:
            raise SettingsError(f"drift_pairs: {self.drift_pairs} is negative; 0 leaves the drift out")
        # What is out of range fails now, not after the training.
        self._part(AuditConfig), self.rule, self.sampling, self.own

    @property
    def rule(self) -> Rule:
        """What the manifests list."""
        if all(getattr(self, one.name) is None for one in fields(Rule)):
            return DEFAULT_RULE
        return self._part(Rule)

    @property
    def sampling(self) -> SamplingConfig:
        """How responses are sampled."""
        return self._part(SamplingConfig, n=self.samples, batch_size=self.sampling_batch_size)

    @property
    def own(self) -> OwnConfig:
        """M0's own responses, the other side of KTO and SFT examples that have one."""
        return OwnConfig(self.own_responses, self.own_samples, self.own_max_new_tokens, self.own_seed)

    def activations(self, layers: tuple[int, ...], path: PassPath = "auto") -> ActivationConfig:
        """How activations are computed where the run itself does not."""
        return self._part(ActivationConfig, layers=layers, path=path)

    def _part(self, settings: type[T], **others: Any) -> T:
        """The settings that these have fields of the same names of, and ``others``."""
        known = {one.name for one in fields(settings)}  # type: ignore[arg-type]  # any dataclass
        names = known & {one.name for one in fields(self)} - others.keys()
        return settings(**{name: getattr(self, name) for name in names}, **others)

    def to_json(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        return asdict(self)


def configured(config: CallbackConfig | None, settings: Mapping[str, Any]) -> CallbackConfig:
    """``config`` (the defaults if there is none) with single ``settings`` put over it; paths may be ``Path``.

    Raises:
        SettingsError: one is unknown, out of range, or contradicts another.
    """
    known = CallbackConfig.__dataclass_fields__
    unknown = sorted(settings.keys() - known.keys())
    if unknown:
        raise SettingsError(f"unknown setting {', '.join(unknown)}; choose from {', '.join(known)}")
    plain: dict[str, Any] = {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}
    return replace(config or CallbackConfig(), **plain)
