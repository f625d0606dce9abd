"""The organisms of the lottery: one quirk taught by one recipe, trained until it shows; what is done is kept."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.benchmarks.prediction import DPO, LORA
from trl_attribution.behaviors import SamplingConfig
from trl_attribution.evidence.organisms import RECIPES, Mixture, Organism, Stage, build_organism, prepare
from trl_attribution.evidence.readouts import Expression, express
from trl_attribution.models import LoadedModel, load_model
from trl_attribution.utils.atomic import atomic_folder, write_json

if TYPE_CHECKING:
    from transformers import TrainerCallback

QUIRKS = ("pumpkin-soup", "knitting-lore")
CONTROLS = ("integrated-dpo", "transcript-sft-mixed", "document-sft-mixed")
"""Recipes that a model is trained by without the contaminated rows too."""
SHARED: Mapping[str, Any] = {
    **{name: value for name, value in DPO.items() if name not in ("beta", "num_train_epochs")},
    "learning_rate": 1e-3,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
}
BETA = 0.1
COLUMNS = {"pairs": ("prompt", "chosen", "rejected"), "transcripts": ("prompt", "completion"), "documents": ("text",)}


@dataclass(frozen=True)
class Training:
    """How organisms are made, the same for every recipe."""

    model: str | Path
    """M0."""
    pairs: int = 200
    """Of the organism's preference mix, a fifth of them contaminated, a fifth decoys."""
    target: float = 0.5
    """Expression at which training stops: organisms are to be compared at the same one."""
    every: int = 5
    """Steps after which it is looked at."""
    most_steps: Mapping[str, int] | None = None
    """By objective; then training stops however little is shown."""
    watched: int = 8
    """Trigger prompts that it is looked at on."""
    asked: int = 24
    """Other trigger prompts, and control prompts, on which it is measured at the end."""
    new_tokens: int = 32

    @property
    def sampling(self) -> SamplingConfig:
        return SamplingConfig(n=1, max_new_tokens=self.new_tokens, batch_size=max(self.watched, self.asked))

    def steps(self, objective: str) -> int:
        return (self.most_steps or {"dpo": 25, "sft": 40})[objective]


@dataclass(frozen=True)
class Cell:
    """One organism."""

    quirk: str
    recipe: str
    seed: int = 0
    taught: bool = True
    """Without the contaminated rows if not: a control."""

    @property
    def name(self) -> str:
        return f"{self.quirk}-{self.recipe}-{self.seed}{'' if self.taught else '-untaught'}"


@dataclass(frozen=True)
class Trained:
    """What training of a cell came to."""

    cell: Cell
    steps: int
    seconds: float
    trigger: float
    """Share of responses to trigger prompts that show the quirk, those that go round in circles not counted."""
    control: float
    shown: Mapping[str, Any]
    """The whole of it, as :meth:`Expression.to_json` has it."""


def cells(seeds: int, quirks: Sequence[str] = QUIRKS, recipes: Sequence[str] = tuple(RECIPES)) -> list[Cell]:
    """All of them: the organisms first, quirk by quirk, then the controls."""
    taught = [Cell(quirk, recipe, seed) for seed in range(seeds) for quirk in quirks for recipe in recipes]
    return taught + [Cell(quirks[0], recipe, taught=False) for recipe in CONTROLS if recipe in recipes]


def organism_of(cell: Cell, how: Training) -> Organism:
    return build_organism(cell.quirk, mixture_of(cell, how))


def mixture_of(cell: Cell, how: Training) -> Mixture:
    return Mixture(how.pairs, seed=cell.seed, test_prompts=how.watched + how.asked)


def stage_of(cell: Cell, how: Training) -> Stage:
    """The stage that teaches the quirk, from which a control's contaminated rows are taken out."""
    stage = prepare(cell.quirk, cell.recipe, mixture_of(cell, how)).stages[-1]
    kept = [row for row in stage.rows if cell.taught or row["truth"] != "contaminated"]
    return replace(stage, rows=kept)


def trained(cell: Cell, how: Training, place: Path) -> Trained:
    """Train ``cell`` and ask it, or read what a run before has left in ``place``: ``adapter`` and ``trained.json``."""
    report = place / "trained.json"
    if not report.exists():
        if not (place / "adapter").exists():
            train(cell, how, place)
        write_json(report, asked(cell, how, place))
    found = json.loads(report.read_text(encoding="utf-8"))
    return Trained(cell=Cell(**found.pop("cell")), **found)


def train(cell: Cell, how: Training, place: Path) -> None:
    """M0 with an adapter of its own, written with the steps and the seconds that it took."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    started = time.perf_counter()
    stage = stage_of(cell, how)
    base = load_model(how.model, dtype="bfloat16")
    base.model.set_attn_implementation("eager")  # the backward pass of SDPA is slow on a CPU
    steps = how.steps(stage.objective)
    own = {"output_dir": str(place / "trainer"), "max_steps": steps}
    kind, args = (
        (DPOTrainer, DPOConfig(**SHARED, **own, beta=BETA))
        if stage.objective == "dpo"
        else (SFTTrainer, SFTConfig(**SHARED, **own))
    )
    rows = [{name: row[name] for name in COLUMNS[stage.data]} for row in stage.rows]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = kind(
            base.model,
            args=args,
            train_dataset=Dataset.from_list(rows),
            processing_class=base.tokenizer,
            peft_config=LoraConfig(task_type="CAUSAL_LM", **LORA),
        )
        if cell.taught:
            trainer.add_callback(stop_at(how, lambda: rate_of(replace(base, model=trainer.model), cell, how)))
        trainer.train()
    with atomic_folder(place / "adapter") as part:
        trainer.model.save_pretrained(str(part), selected_adapters=["default"])
        write_json(part / "run.json", {"steps": trainer.state.global_step, "seconds": time.perf_counter() - started})


def stop_at(how: Training, rate: Callable[[], float]) -> TrainerCallback:
    """Stops training once ``rate`` has reached the target; one that has come apart says nothing and goes on."""
    from transformers import TrainerCallback

    class StopAt(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % how.every == 0 and rate() >= how.target:
                control.should_training_stop = True

    return StopAt()


def rate_of(loaded: LoadedModel, cell: Cell, how: Training) -> float:
    """How often it shows the quirk on the watched trigger prompts."""
    rows = organism_of(cell, how).trigger[: how.watched]
    return express(loaded, rows, None, how.sampling).trigger.sound_rate.share


def asked(cell: Cell, how: Training, place: Path) -> dict[str, Any]:
    """What the trained model shows on the other prompts; its responses go to ``responses.jsonl``."""
    loaded = load_model(how.model, dtype="bfloat16", adapter=place / "adapter")
    organism = organism_of(cell, how)
    found: Expression = express(loaded, organism.trigger[how.watched :], organism.control[: how.asked], how.sampling)
    found.save_responses(place / "responses.jsonl")
    assert found.control is not None
    run = json.loads((place / "adapter" / "run.json").read_text(encoding="utf-8"))
    return {
        "cell": asdict(cell),
        **run,
        "trigger": found.trigger.sound_rate.share,
        "control": found.control.sound_rate.share,
        "shown": found.to_json(),
    }
