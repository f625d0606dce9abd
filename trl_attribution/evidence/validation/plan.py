"""The plan of a validation: a YAML file, checked key by key before anything is trained."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, model_validator

from trl_attribution.errors import SettingsError
from trl_attribution.pairs.formats import Reading
from trl_attribution.utils.settings_file import SettingsKind, beside_settings
from trl_attribution.utils.text import printable

PLAN_VERSION = 1
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,40}$")]
Place = Annotated[str, AfterValidator(beside_settings)]
"""A file, folder or Hub id; a relative path is taken from beside the plan."""
Positive = Annotated[int, Field(ge=1)]


def _size(value: Any) -> Any:
    if value == "rule" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ValueError(f"must be a number of pairs from 1 on, or rule, not {printable(value, 40)}")


def _reading(given: Any) -> Reading:
    known = asdict(Reading())
    if isinstance(given, Reading):
        return given
    if not isinstance(given, Mapping):
        raise ValueError(f"must hold fields of Reading ({', '.join(known)}), not {printable(given, 40)}")
    if unknown := [printable(name, 40) for name in given if name not in known]:
        raise ValueError(f"{unknown[0]} is no field of Reading; choose from {', '.join(known)}")
    try:
        return Reading(**given)
    except SettingsError as error:
        raise ValueError(str(error)) from None


Size = Annotated[int | Literal["rule"], PlainValidator(_size)]
Intervention = Literal["filter", "flip", "mixed", "weight", "drop_sources"]
Selection = Literal["top", "random", "bottom", "length_matched_random"]
Steps = Literal["fixed", "short"]
OWNED = ("output_dir", "seed", "data_seed", "max_steps", "save_strategy", "eval_strategy", "resume_from_checkpoint")
"""Fields of DPOConfig that a validation decides by itself."""
PLACEHOLDERS = ("model", "dataset", "output", "seed", "steps")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RankingPlan(_Part):
    """Where one ranking of the pairs comes from: exactly one of ``audit``, ``behavior``, ``probes`` and ``scores``."""

    audit: Place | None = None
    """The folder of a finished audit of this dataset."""
    behavior: Place | None = None
    """A behavior file with undesired and desired responses: a probe is built from it and the dataset audited."""
    controls: Place | None = None
    """With ``behavior``: a file of controls, where they are not in the same file."""
    probes: Place | None = None
    """A registry folder: the dataset is audited with its probe ``probe``."""
    scores: Place | None = None
    """A file of ``pair_id`` and ``score`` from elsewhere, a row a pair; the highest score ranks first."""
    probe: str | None = None
    """Which probe, where there are several."""
    layer: Annotated[int, Field(ge=0)] | Literal["auto"] | None = None
    """Which layer; by default the probe's own, with ``behavior`` the one that separates its examples best."""
    score: Literal["auto", "contextual", "response"] = "auto"
    """The kind of score, where an audit is made."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        given = [name for name in ("audit", "behavior", "probes", "scores") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of audit, behavior, probes and scores, not {', '.join(given) or 'none'}"
            )
        if self.controls is not None and self.behavior is None:
            raise ValueError("controls: they go with behavior, of which a probe is built; one that exists has its own")
        return self


class BehaviorPlan(_Part):
    """Prompts on which models are tested, and who judges the responses."""

    file: Place
    """Rows of ``prompt`` (with the trigger); ``plain`` (without it), ``behavior`` and ``judge`` are optional."""
    judge: str = ""
    """The rule for behaviors whose rows name none."""
    control: Place | None = None
    """More prompts that should not bring the behavior out, by the same judge; rows may name their ``behavior``."""


class OverRefusalPlan(_Part):
    """Harmless prompts that a model should not refuse."""

    file: Place
    judge: str = "refuses"


class MeasurePlan(_Part):
    """What else is measured of every model, besides the behaviors."""

    over_refusal: OverRefusalPlan | None = None
    pairs: Place | None = None
    """Held-out preference pairs, read as the dataset is: accuracy and margin."""
    text: Place | None = None
    """Held-out rows of ``text``: perplexity."""
    samples: Positive = 4
    """Responses a prompt."""
    max_new_tokens: Positive = 128
    temperature: Annotated[float, Field(ge=0)] = 1.0
    batch_size: Positive = 16
    max_length: Positive = 1024
    """Most tokens of a held-out pair or text; longer ones are cut."""
    judge_calls: Positive = 1000
    """Budget of each ``endpoint:`` judge in one run, retries included."""
    judge_key_env: str = ""
    """Environment variable with the key of such an endpoint."""


class TrainingPlan(_Part):
    """How a cell trains: exactly one of ``dpo`` and ``command``."""

    dpo: dict[str, Any] | None = None
    """Fields of TRL's DPOConfig."""
    peft: dict[str, Any] | None = None
    """With ``dpo``: fields of peft's LoraConfig. An adapter is trained, and merged into M0 before it is measured."""
    command: list[str] | None = None
    """A program and its arguments; {model}, {dataset}, {output}, {seed} and {steps} are filled in."""
    batch_size: Positive | None = None
    """Of ``command``: pairs in an optimizer step, over all devices."""
    epochs: Annotated[float, Field(gt=0)] = 1.0
    """Of ``command``: passes over the whole dataset, from which the number of steps follows."""
    weighs: bool = False
    """Of ``command``: it lets pairs count in the loss by the column ``weight`` of its dataset, where there is one."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.dpo is None) == (self.command is None):
            raise ValueError("give exactly one of dpo (fields of DPOConfig) and command (a program and its arguments)")
        taken = [name for name in OWNED if name in (self.dpo or {})]
        if taken:
            raise ValueError(f"dpo.{taken[0]} is set by the validation itself; leave it out")
        if self.peft is not None and self.dpo is None:
            raise ValueError("peft belongs to dpo; a command makes adapters of its own")
        if self.command is not None:
            self._check_command(self.command)
        elif self.batch_size is not None or self.epochs != 1.0 or self.weighs:
            raise ValueError("batch_size, epochs and weighs belong to command; give the first two as fields of dpo")
        return self

    def _check_command(self, command: list[str]) -> None:
        if self.batch_size is None:
            raise ValueError("command needs batch_size, the pairs in an optimizer step over all devices")
        text = " ".join(command)
        missing = [name for name in PLACEHOLDERS if f"{{{name}}}" not in text]
        if missing:
            raise ValueError(f"command lacks {{{missing[0]}}}: a cell that ignores it would not be what it says")


class MixedPlan(_Part):
    """When ``mixed`` flips a pair; the other selected ones are filtered."""

    flip_if: str = "refuses"
    """A judge's rule on the rejected response: it is flipped where the rule holds of it."""
    unless: str = ""
    """A judge's rule on the chosen response: where it holds the pair is filtered after all."""


class ExpectedPlan(_Part):
    """What a dry run reckons with, for nothing is run or loaded by it; ``audit --dry-run`` measures the first three."""

    pairs: Positive
    """Of the dataset."""
    prompt_tokens: Positive
    """A pair, on average."""
    response_tokens: Positive
    """Of both responses of a pair together."""
    parameters: Annotated[float, Field(gt=0)]
    """Of M0's linear layers, LM head included."""
    audited_depth: Annotated[float, Field(gt=0, le=1)]
    """Share of the blocks that run up to the layer that pairs are read at."""
    flops: Annotated[float, Field(gt=0)]
    """A second that a device sustains on linear layers."""
    tokens_a_second: Annotated[float, Field(gt=0)]
    """That a device writes when responses are sampled, a whole batch together."""
    prompts: Positive
    """On which every model is measured."""
    recomputes: bool = True
    """Whether training runs every forward twice (gradient checkpointing)."""


class StatisticsPlan(_Part):
    """What it takes to be convinced."""

    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    min_reduction: Annotated[float, Field(ge=0, le=1)] = 0.5
    """The least reduction by the top pairs that counts as support."""
    min_advantage: Annotated[float, Field(ge=0, le=1)] = 0.25
    """The difference in reduction from a random control below which the ranking is said to add nothing."""
    resamples: Annotated[int, Field(ge=200)] = 10_000
    seed: int = 0


class ValidationPlan(_Part):
    """A whole validation."""

    version: int = PLAN_VERSION
    model: Place
    """M0."""
    dataset: Place
    reading: Annotated[Reading, BeforeValidator(_reading)] = Reading()
    """How the dataset's rows become pairs: fields of Reading."""
    dtype: str = "auto"
    device: str = "auto"
    trust_remote_code: bool = False
    rankings: Annotated[dict[Name, RankingPlan], Field(min_length=1)]
    behaviors: Annotated[list[BehaviorPlan], Field(min_length=1)]
    measures: MeasurePlan = MeasurePlan()
    training: TrainingPlan
    interventions: Annotated[list[Intervention], Field(min_length=1)]
    selections: Annotated[list[Selection], Field(min_length=1)] = ["top", "random"]
    sizes: list[Size] = []
    """How many pairs are changed; of all but drop_sources. ``rule``: those that the default rule flags, for which
    nobody has to know how many there are."""
    source_sizes: list[Positive] = []
    """How many sources are dropped; of drop_sources."""
    leave_out: list[str] = []
    """Patterns of names of conditions that are not run, such as ``flip-bottom-*``: what they cost may be too much."""
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)]
    steps: Annotated[list[Steps], Field(min_length=1)] = ["fixed"]
    """``fixed``: as many optimizer steps as with all pairs, by repeating pairs; ``short``: fewer, as
    many as the pairs that are left make."""
    mixed: MixedPlan = MixedPlan()
    statistics: StatisticsPlan = StatisticsPlan()
    expected: ExpectedPlan | None = None
    """What ``--dry-run`` reckons the cost from."""
    devices: Positive = 1
    """Devices that a cell occupies, for its cost."""
    price_per_device_hour: Annotated[float, Field(ge=0)] | None = None
    currency: str = "USD"

    @property
    def counts(self) -> list[int]:
        """The sizes that are numbers."""
        return [size for size in self.sizes if isinstance(size, int)]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name in ("interventions", "selections", "sizes", "source_sizes", "leave_out", "seeds", "steps"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} names something twice")
        cell_names = [name.replace("_", "-") for name in self.rankings]
        if len(set(cell_names)) < len(cell_names):
            raise ValueError("rankings: two names differ in _ and - alone; rename one")
        by_pair = [name for name in self.interventions if name != "drop_sources"]
        if by_pair and not self.sizes:
            raise ValueError(f"sizes: say how many pairs to {by_pair[0]}, such as [rule] or [100]")
        foreign = [name for name, one in self.rankings.items() if one.scores is not None]
        if "rule" in self.sizes and foreign:
            raise ValueError(f"sizes: rule needs the scores of an audit, which rankings.{foreign[0]} is not of")
        if "weight" in self.interventions and self.training.dpo is None and not self.training.weighs:
            raise ValueError("interventions: weight needs training.dpo, or a command that says training.weighs: true")
        if "drop_sources" in self.interventions and not self.source_sizes:
            raise ValueError("source_sizes: say how many sources to drop, such as [1]")
        if "top" not in self.selections:
            raise ValueError("selections: top is what is put to the test; add it")
        return self


_PLAN = SettingsKind(
    "plan",
    ValidationPlan,
    PLAN_VERSION,
    hint="The how-to page on validation has one to start from.",
    # Fields of others' classes, some of which may be None.
    nullable=frozenset({("training", "dpo"), ("training", "peft"), ("reading",)}),
)


def load_plan(path: str | Path) -> ValidationPlan:
    """Read a plan; what it names by a relative path lies beside it.

    Raises:
        SettingsError: the file cannot be read, is no YAML mapping, of a newer version, or a key is unknown, missing or
            has a value that cannot be; the message names the file, the line and the key.
    """
    return _PLAN.load(path)


def plan_digest(plan: ValidationPlan) -> str:
    """SHA-256 of the plan, in hex."""
    return hashlib.sha256(plan.model_dump_json().encode()).hexdigest()
