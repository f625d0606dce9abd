"""How far the built-in rules that judge responses agree with labels made by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from tests.benchmarks.pages import Results, write_page
from trl_attribution.behaviors import complies, judged, refuses

DATA = Path(__file__).parents[1] / "data" / "judged_responses.jsonl"
HALVES = ("tuning", "held-out")
OTHER_LANGUAGE = "in another language"
NO_ANSWER = ("off topic", "gibberish", "empty")
RULES: dict[str, Callable[[str, str], bool]] = {"complies": complies, "refuses": refuses}


@dataclass(frozen=True)
class Labelled:
    """One response with what a person says of it."""

    kind: str
    prompt: str
    response: str
    complies: bool
    refuses: bool
    half: str


@dataclass(frozen=True)
class Confusion:
    """Counts of labels against verdicts."""

    hits: int
    misses: int
    false_alarms: int
    rejections: int

    @property
    def total(self) -> int:
        return self.hits + self.misses + self.false_alarms + self.rejections

    @property
    def agreement(self) -> float:
        return (self.hits + self.rejections) / self.total

    @property
    def kappa(self) -> float:
        """Cohen's: agreement beyond chance."""
        yes, said = self.hits + self.misses, self.hits + self.false_alarms
        chance = (yes * said + (self.total - yes) * (self.total - said)) / self.total**2
        return (self.agreement - chance) / (1 - chance) if chance < 1 else 1.0


def labelled() -> list[Labelled]:
    return [Labelled(**json.loads(line)) for line in DATA.read_text(encoding="utf-8").splitlines()]


def confusion(rule: str, rows: Sequence[Labelled]) -> Confusion:
    """The verdicts of ``rule``, as the package asks for them (a response without text shows nothing)."""
    verdict = judged(RULES[rule], [(row.prompt, row.response) for row in rows])
    found = [(getattr(row, rule), verdict(row.prompt, row.response)) for row in rows]
    return Confusion(*(found.count(one) for one in ((True, True), (True, False), (False, True), (False, False))))


def run(output: Path, command: str, console: Console) -> None:
    """Count, print, and write ``judge.md`` into ``output``."""
    rows = labelled()
    tables = [overall(rows), by_kind([row for row in rows if row.half == "held-out"])]
    for table in tables:
        table.show(console)
    lead = (
        f"{len(rows)} responses to mild requests, written and labelled by hand for this project: does the response do "
        "what was asked (`complies`), does it decline (`refuses`)? A response may do neither. Half of them, drawn "
        "within each kind, were looked at when the rules were last mended; the held-out half is the figure to go by. "
        "One person wrote and labelled them, so they say how the rules do on varied wording, not how people differ, "
        "and they are harder than what one model says: models refuse in few words and the same ones."
    )
    write_page(output / "judge.md", "Built-in judges", lead, command, tables)


def overall(rows: Sequence[Labelled]) -> Results:
    lines = []
    for rule in RULES:
        for half in HALVES:
            part = [row for row in rows if row.half == half]
            lines.append(_line(f"`{rule}`, {half}", confusion(rule, part)))
        plain = [row for row in rows if row.half == "held-out" and not _is_hard(row)]
        lines.append(_line(f"`{rule}`, held-out, English answers and refusals", confusion(rule, plain)))
    columns = ("rule and responses", "agreement", "kappa", "yes, yes", "yes, no", "no, yes", "no, no")
    note = (
        "The last four columns are the confusion table: what the label says, then what the rule says. The last line of "
        "each rule leaves out other languages, and responses that neither comply nor refuse, which the rules do not "
        "claim to judge."
    )
    return Results("Agreement with the labels", columns, tuple(lines), note)


def by_kind(rows: Sequence[Labelled]) -> Results:
    kinds = list(dict.fromkeys(row.kind for row in rows))
    lines = []
    for kind in kinds:
        part = [row for row in rows if row.kind == kind]
        counts = [confusion(rule, part) for rule in RULES]
        right = [f"{one.hits + one.rejections} of {one.total}" for one in counts]
        lines.append((kind, *right))
    note = (
        "`complies` is every response with text that does not open with a refusal: **a response that is off topic or "
        "gibberish counts as complying.** Where a model may lose the thread, count `refuses` as well, or give a judge "
        "that looks for the behavior itself (`keyword:`, `model:`, `endpoint:`)."
    )
    return Results("Right verdicts by kind, held-out half", ("kind", "`complies`", "`refuses`"), tuple(lines), note)


def _is_hard(row: Labelled) -> bool:
    return row.kind in NO_ANSWER or row.kind.endswith(OTHER_LANGUAGE)


def _line(name: str, found: Confusion) -> tuple[str, ...]:
    counts = (found.hits, found.misses, found.false_alarms, found.rejections)
    return (name, f"{found.agreement:.1%}", f"{found.kappa:.2f}", *map(str, counts))
