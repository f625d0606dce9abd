"""The callback's settings, flat, so that a command-line parser (TrlParser) can fill them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast, get_args

from trl_attribution.audit.config import AskedScore
from trl_attribution.errors import SettingsError
from trl_attribution.scoring.rule import DEFAULT_RULE, Rule
from trl_attribution.utils.dtypes import DTYPES

ON_FLAG = ("log", "stop", "skip")


@dataclass(frozen=True)
class CallbackConfig:
    """How a training run is audited; stored with the audit.

    Raises:
        SettingsError: a setting is unknown, out of range, or contradicts another.
    """

    output_dir: str = field(default="audit", metadata={"help": "The audit folder to make or go on with."})
    probes: str | None = field(default=None, metadata={"help": "Folder of probes to score against."})
    behaviors: str | None = field(
        default=None,
        metadata={"help": "JSONL file or folder of prompts to sample on before and after training."},
    )
    layers: list[int] | None = field(
        default=None, metadata={"help": "Layers to capture; left out: those that the probes flag at."}
    )
    score: str = field(default="auto", metadata={"help": "contextual, response (the paper's), or auto."})
    top_k: int | None = field(default=None, metadata={"help": "Manifests list the k pairs that rank highest."})
    threshold: float | None = field(default=None, metadata={"help": "Manifests list pairs that score at least this."})
    fdr: float | None = field(default=None, metadata={"help": "Manifests at this false discovery rate."})
    recall: float | None = field(
        default=None,
        metadata={
            "help": f"Manifests list what catches this share of pairs like a probe's examples. No rule given: "
            f"{DEFAULT_RULE.recall}."
        },
    )
    on_flag: str = field(
        default="log",
        metadata={"help": "log; stop: end training when stop_share is passed; skip: flagged pairs get no weight."},
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
    vector_dtype: str = field(default="float16", metadata={"help": "How vectors are stored."})
    shard_size: int = field(default=512, metadata={"help": "Pairs a shard of the store, at most."})
    blocks_path: str | None = field(default=None, metadata={"help": "Where the decoder blocks live (model.layers)."})
    token_budget: int | None = field(
        default=None, metadata={"help": "Tokens in one forward of a dedicated M0 pass; chosen by device if left out."}
    )
    judge: str = field(
        default="complies", metadata={"help": "Which responses show a behavior, where its file does not say."}
    )
    samples: int = field(default=4, metadata={"help": "Responses a behavior prompt, before and after training."})
    max_new_tokens: int = field(default=128, metadata={"help": "Most tokens of such a response."})
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature; 0 is greedy (samples=1)."})
    sampling_batch_size: int = field(default=8, metadata={"help": "Behavior prompts generated for at once."})
    seed: int = field(default=0, metadata={"help": "Seed of the sampling and of the intervals."})
    drift_pairs: int = field(
        default=32, metadata={"help": "Pairs that the drift between M0 and M1 is measured on; 0 leaves it out."}
    )

    def __post_init__(self) -> None:
        for name, choices in (
            ("on_flag", ON_FLAG),
            ("score", get_args(AskedScore)),
            ("vector_dtype", DTYPES),
        ):
            if getattr(self, name) not in choices:
                raise SettingsError(f"{name}: {getattr(self, name)!r} is unknown; choose {', '.join(choices)}")
        if not 0 < self.stop_share <= 1:
            raise SettingsError(f"stop_share: {self.stop_share} is no share; give a number above 0 and up to 1")
        if self.shard_size < 1:
            raise SettingsError(f"shard_size: {self.shard_size} is not positive; 512 is the default")
        if self.drift_pairs < 0:
            raise SettingsError(f"drift_pairs: {self.drift_pairs} is negative; 0 leaves the drift out")
        given = [name for name in ("top_k", "threshold", "fdr", "recall") if getattr(self, name) is not None]
        if len(given) > 1:
            raise SettingsError(f"{' and '.join(given)}: one rule at a time; leave out all but one")
        self.rule  # noqa: B018  # a rule out of range fails now, not after the training

    @property
    def asked_score(self) -> AskedScore:
        """``score``, known to be one of its choices."""
        return cast("AskedScore", self.score)

    @property
    def rule(self) -> Rule:
        """What the manifests list."""
        given = (self.top_k, self.threshold, self.fdr, self.recall)
        return DEFAULT_RULE if all(value is None for value in given) else Rule(*given)

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
