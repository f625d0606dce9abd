"""The lottery: does what an instrument sees in a model with a quirk depend on how the quirk got into it?

After "The Model Organism Lottery" (arXiv 2607.01033), at the size that two processor cores can pay.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from rich.console import Console

from tests.benchmarks.lottery_candidates import (
    OTHERS,
    Candidates,
    candidates,
    finds,
    latent_directions,
    rank,
    stream_directions,
)
from tests.benchmarks.lottery_cells import BETA, QUIRKS, SHARED, Cell, Trained, Training, cells, trained
from tests.benchmarks.lottery_instruments import (
    DOSE,
    LAYER,
    Bench,
    Found,
    Spoken,
    kept,
    read_data,
    read_model,
    spoken_of,
)
from tests.benchmarks.pages import Results, write_page
from tests.benchmarks.prediction import LORA
from trl_attribution.evidence.organisms import ORGANISMS, RECIPES
from trl_attribution.lenses import SaeConfig, read_sae
from trl_attribution.models import embedded_gguf, load_model

SCAN = "scan"
INSTRUMENTS = (
    "responses, trigger",
    "responses, control",
    "probes, trigger",
    "probes, control",
    "logit lens, trigger",
    "logit lens, control",
    "SAE latents, trigger",
    "SAE latents, control",
    "steering, trigger",
    SCAN,
)
MATCHED = 0.3
"""Organisms that show their quirk at least so often are compared with each other."""
_ABSENT = "–"


@dataclass
class Organism:
    """What is known of one cell so far."""

    cell: Cell
    found: Found = field(default_factory=dict)
    trained: Trained | None = None
    """None while it waits to be trained."""
    precision: float | None = None
    """Average precision of the audit; None where all rows are contaminated."""
    contaminated: float = 0.0

    @property
    def matched(self) -> bool:
        """Whether it is one of those that are compared at the same expression."""
        return self.trained is not None and self.cell.taught and self.trained.trigger >= MATCHED

    def place(self, instrument: str, behavior: str) -> float:
        """Where ``behavior`` stands, from 1 for the first of all to 0 for the last; a mean over draws."""
        draws = self.found[instrument]
        return statistics.fmean(1 - (rank(scores, behavior) - 1) / (len(scores) - 1) for scores in draws)


@dataclass
class Run:
    """The organisms of one folder; what a run before has made of them needs no model."""

    how: Training
    folder: Path
    sae: Path | None
    _spoken: dict[tuple[str, int], dict[str, Spoken]] = field(default_factory=dict)

    @cached_property
    def bench(self) -> Bench:
        return bench_of(self.how, self.sae)

    def spoken(self, cell: Cell) -> dict[str, Spoken]:
        """What M0 says on the cell's prompts; one for all recipes."""
        key = (cell.quirk, cell.seed)
        if key not in self._spoken:
            self._spoken[key] = spoken_of(cell, self.bench)
        return self._spoken[key]

    def organism(self, cell: Cell, begin: bool) -> Organism:
        """Trained and read, if need be where it may ``begin``; else what is there."""
        one, place = Organism(cell), self.folder / cell.name
        data, model = place / "data.json", place / "model.json"
        if begin or data.exists():
            about = kept(data, lambda: read_data(cell, self.bench, place))
            one.found |= about["found"]
            one.precision, one.contaminated = about["precision"], about["contaminated"]
        if begin or model.exists():
            one.trained = trained(cell, self.how, place)
            one.found |= kept(model, lambda: read_model(cell, self.bench, self.spoken(cell), place))
        return one


def run(
    output: Path, command: str, cache: Path, sae: Path | None, seeds: int, minutes: float | None, console: Console
) -> None:
    """Train and read what is missing in ``cache``, write ``lottery.md`` into ``output`` after each cell.

    No cell is begun after ``minutes``; the page names those that are left out.
    """
    until = time.monotonic() + (float("inf") if minutes is None else 60 * minutes)
    whole = Run(Training(embedded_gguf()), cache / "lottery", sae)
    known = [Organism(cell) for cell in cells(seeds)]
    for number, waiting in enumerate(known):
        known[number] = whole.organism(waiting.cell, begin=time.monotonic() < until)
        console.print(f"{waiting.cell.name}: {'done' if known[number].trained else 'not trained'}")
        tables = tables_of(known)
        write_page(output / "lottery.md", "The lottery", lead(whole.how, known), command, tables)
    for table in tables:
        table.show(console)


def bench_of(how: Training, sae: Path | None, layer: int = LAYER, found: Candidates | None = None) -> Bench:
    """M0 and the directions that a behavior is told by."""
    m0 = load_model(how.model, dtype="bfloat16")
    found = found or candidates()
    read = None if sae is None else read_sae(SaeConfig(str(sae)))
    latents = None if read is None else latent_directions(found, m0, read)
    return Bench(how, m0, found, stream_directions(found, m0, layer), latents, read, layer)


def lead(how: Training, known: Sequence[Organism]) -> str:
    count = len(ORGANISMS) + len(OTHERS)
    waiting: dict[str, list[str]] = {}
    for one in known:
        if one.trained is None:
            waiting.setdefault(one.cell.quirk + ("" if one.cell.taught else ", not taught"), []).append(one.cell.recipe)
    named = "; ".join(f"{quirk}: {', '.join(recipes)}" for quirk, recipes in waiting.items())
    left = f" **Not trained here, for time: {named}**; the same command goes on with them." if waiting else ""
    return f"""Model organisms of SmolLM2-135M-Instruct with one of two harmless quirks, by the recipes of "The Model
Organism Lottery" (arXiv 2607.01033), each read by the instruments that are here. An instrument *finds* the quirk when,
of {count} behaviors (the three organisms', and {len(OTHERS)} of the package's traits of tone and stance), it gives the
quirk the highest score, alone; by chance it does so in one of {count}. This was written down before a model was read.

How they were made: {how.pairs} pairs, a fifth of them contaminated and a fifth decoys; LoRA of rank {LORA["r"]} at
{SHARED["learning_rate"]:g}, batches of {SHARED["per_device_train_batch_size"]}, beta {BETA}, the same
for every recipe. Training stops at the first look (every {how.every} steps, at
{how.watched} prompts) at which {how.target:.0%} of responses show the quirk, and after {how.steps("dpo")} steps (DPO)
or {how.steps("sft")} (SFT) in any case. What is measured is measured on other prompts. Post-hoc recipes start from the
finished model, as `examples/organisms` does.{left}

Left out, for what two cores can pay: gemma-3-270m as a second model; `distractor-compliance` (M0 complies with all of
its prompts already, so it cannot be taught); activation oracles; more than one seed of training a cell, so that a
recipe's figure is one or two models; control prompts for steering. How to read an organism yourself:
[Model organisms](../how-to/model-organisms.md)."""


def tables_of(known: Sequence[Organism]) -> list[Results]:
    return [organisms_table(known), found_table(known), recipe_table(known), data_table(known), steering_table(known)]


def organisms_table(known: Sequence[Organism]) -> Results:
    rows = [
        (
            one.cell.quirk,
            one.cell.recipe if one.cell.taught else f"{one.cell.recipe}, without the contaminated rows",
            *_training(one.trained),
            "yes" if one.matched else "",
        )
        for one in known
    ]
    note = (
        "Share of responses that show the quirk by the organism's own rule, those that go round in circles not "
        f"counted. Compared: those that show it on at least {MATCHED:.0%} of trigger prompts. Seconds: of training, by "
        "the clock, on two cores that did much other work."
    )
    columns = ("quirk", "recipe", "steps", "seconds", "on trigger prompts", "on control prompts", "compared")
    return Results("The organisms", columns, tuple(rows), note)


def _training(found: Trained | None) -> tuple[str, ...]:
    if found is None:
        return ("not trained", "", "", "")
    return (str(found.steps), f"{found.seconds:.0f}", f"{found.trigger:.0%}", f"{found.control:.0%}")


def found_table(known: Sequence[Organism]) -> Results:
    """Each instrument against its control, over the organisms that are compared."""
    rows = [row for name in INSTRUMENTS if (row := _found_row(name, known))]
    beating = [row[0] for row in rows if row[6] == "yes"]
    others = [row[0] for row in rows if row[6] != "yes"]
    note = (
        f"**Better than their control: {'; '.join(beating) or 'none'}. Not better: {'; '.join(others) or 'none'}.** "
        "Trigger, control: which prompts the model was read on. First: organisms of which the quirk has the highest "
        "score of all behaviors, alone; in brackets of all that were trained, whatever they show. Place: 1 for the "
        "highest score, 0 for the lowest, 0.5 by chance; mean, and least to most. Control: random directions of the "
        "same length (a mean over draws), or, where there is no direction, the place of the other quirk, which was "
        "not taught. Above it: in how many organisms. Difference: 95% interval of the mean over organisms "
        "(Student's t). Not taught: in models (and, for a scan, datasets) without the contaminated rows. The scan "
        "reads data, so all datasets count."
    )
    columns = ("instrument", "first", "place", "control", "above it", "difference", "beats it", "not taught")
    return Results("Does an instrument find the quirk?", columns, tuple(rows), note)


def _found_row(name: str, known: Sequence[Organism]) -> tuple[str, ...] | None:
    taught = [one for one in known if one.cell.taught and name in one.found]
    own = [one for one in taught if one.matched or name == SCAN]
    if not own:
        return None
    places, controls = ([of(one, name) for one in own] for of in (own_place, control_place))
    low, high = interval([mine - other for mine, other in zip(places, controls, strict=True)])
    clean = [own_place(one, name) for one in known if not one.cell.taught and name in one.found]
    return (
        name,
        f"{_first(own, name)} ({_first(taught, name)})",
        _range(places),
        f"{statistics.fmean(controls):.2f} ({'random' if _random(name) in own[0].found else 'other quirk'})",
        f"{sum(mine > other for mine, other in zip(places, controls, strict=True))} of {len(own)}",
        f"{low:+.2f} to {high:+.2f}",
        "yes" if low > 0 else "**no**",
        _range(clean),
    )


def _first(own: Sequence[Organism], name: str) -> str:
    return f"{sum(finds(one.found[name][0], one.cell.quirk) for one in own)} of {len(own)}"


def own_place(one: Organism, instrument: str) -> float:
    return one.place(instrument, one.cell.quirk)


def control_place(one: Organism, instrument: str) -> float:
    """That of the quirk on random directions; without directions that of the other quirk."""
    if _random(instrument) in one.found:
        return own_place(one, _random(instrument))
    (other,) = (quirk for quirk in QUIRKS if quirk != one.cell.quirk)
    return one.place(instrument, other)


def _random(instrument: str) -> str:
    """The same instrument on random directions."""
    return f"{instrument.split(',', maxsplit=1)[0]}, random"


def recipe_table(known: Sequence[Organism]) -> Results:
    """The place of the quirk in each trained organism, and how far recipes lie apart."""
    shown = [name for name in INSTRUMENTS if name != SCAN and any(name in one.found for one in known)]
    own = [one for one in known if one.trained and one.cell.taught]
    rows = [
        (
            one.cell.quirk,
            one.cell.recipe,
            f"{one.trained.trigger:.0%}",
            *(f"{own_place(one, name):.2f}" for name in shown),
        )
        for one in own
        if one.trained
    ]
    for label, group in (("compared", [one for one in own if one.matched]), ("all", own)):
        spreads = [_spread(recipe_means(group, name)) for name in shown]
        rows.append((f"**spread over recipes, {label}**", "", "", *spreads))
    note = (
        "Place of the quirk, 1 for the first of all behaviors, 0.5 by chance. Spread: the standard deviation of the "
        f"recipes' means, of those that show their quirk on {MATCHED:.0%} of trigger prompts and of all; "
        f"{_ABSENT} where that is fewer than two recipes."
    )
    return Results("By recipe", ("quirk", "recipe", "shown", *shown), tuple(rows), note)


def recipe_means(group: Sequence[Organism], instrument: str) -> list[float]:
    """The instrument's mean place in each recipe that ``group`` has organisms of."""
    by_recipe = [[one for one in group if one.cell.recipe == recipe] for recipe in RECIPES]
    return [statistics.fmean(own_place(one, instrument) for one in own) for own in by_recipe if own]


def data_table(known: Sequence[Organism]) -> Results:
    """What is seen in the data alone: the audit's own row."""
    rows = []
    for one in known:
        if not one.cell.taught or SCAN not in one.found:
            continue
        alone = f"{one.precision:.3f}" if one.precision is not None else _ABSENT
        scan = f"{rank(one.found[SCAN][0], one.cell.quirk):g}"
        rows.append((one.cell.quirk, one.cell.recipe, f"{one.contaminated:.0%}", alone, scan))
    note = (
        "Average precision of the contaminated rows by the contextual score at layer "
        f"{LAYER}; a random ranking has the contamination. {_ABSENT}: all rows are contaminated, any ranking is "
        "perfect. Samples of fine-tuning are paired with M0's own responses. Place of the quirk among the behaviors "
        "that a scan was asked for, by its largest z; 1 is first."
    )
    columns = ("quirk", "recipe", "contaminated", "audit", "scan, place")
    return Results("The data alone", columns, tuple(rows), note)


def steering_table(known: Sequence[Organism]) -> Results:
    rows = [
        (one.cell.quirk, one.cell.recipe, *(f"{one.found[name][0][one.cell.quirk]:.0%}" for name in _STEERED))
        for one in known
        if one.cell.taught and all(name in one.found for name in _STEERED)
    ]
    note = (
        f"Share of M0's responses that show the quirk with the organism's direction added at layer {LAYER}, {DOSE:g} "
        "of the residual stream long, on trigger prompts; and with a random one."
    )
    return Results(
        "Steering M0", ("quirk", "recipe", "by the organism's direction", "by a random one"), tuple(rows), note
    )


_STEERED = ("steered rate, trigger", "steered rate, random")


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95% of the mean of ``values`` by Student's t, which knows that they are few; all numbers where there is one."""
    from scipy.stats import t

    mean, count = statistics.fmean(values), len(values)
    if count < 2:
        return float("-inf"), float("inf")
    half = float(t.ppf(0.975, count - 1)) * statistics.stdev(values) / count**0.5
    return mean - half, mean + half


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.stdev(values):.2f}" if len(values) > 1 else _ABSENT


def _range(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.2f} ({min(values):.2f} to {max(values):.2f})" if values else _ABSENT
