"""What a scan found, in sentences and as a table. Dataset text only ever enters as ``Text`` made printable."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from trl_attribution.discovery.findings import Finding, ScanResult, TraitCheck, Unnamed
from trl_attribution.discovery.traits.trait import Trait
from trl_attribution.report.terminal import examples_table, sides_text
from trl_attribution.utils.kinds import PAIR, ExampleKind
from trl_attribution.utils.tables import table
from trl_attribution.utils.text import counted, printable, shell_command

_DETAILED = 3
_MOSTLY = 0.6


def scan_view(result: ScanResult, folder: Path, dataset: str, shown: int, typical: int = 3) -> Group:
    """The findings as a table and sentences, ``typical`` pairs of the first, what was not told, and what to do next."""
    data = f"{printable(result.dataset['name'], 200)} ({_pairs(result)})"
    parts: list[RenderableType] = [Text(f"{headline(result, data)}.", "bold")]
    listed = result.findings[:shown]
    if listed:
        parts += ["", findings_table(listed, len(result.findings), result.examples)]
    for number, one in enumerate(listed[:_DETAILED], start=1):
        parts += ["", Text(f"{number}. {sentence(one, result.examples)}", "bold red" if one.harmful else "bold")]
        if one.typical[:typical]:
            parts.append(_typical(one, typical))
        command = apply_command(one, folder, dataset) or f"apply {one.manifest}, in a folder whose name can be shown"
        parts.append(Text(f"   without its {result.examples.several}: {command}", "dim", no_wrap=True))
    parts += ["", *(Text(line, "dim") for line in closing_lines(result))]
    return Group(*parts)


def headline(result: ScanResult, data: str = "this dataset") -> str:
    """What was found in ``data``, in one sentence without its full stop."""
    return f"What {data} would teach: {tally(result)}" if result.findings else f"{tally(result)} in {data}"


def tally(result: ScanResult) -> str:
    """How many findings there are, how many are harmful, and their order."""
    if not result.findings:
        return "Nothing that the traits name stands out"
    harmful = sum(one.harmful for one in result.findings)
    worry = f"{counted(harmful, 'harmful one')} first, then" if harmful else "none of them harmful,"
    return f"{counted(len(result.findings), 'finding')}, {worry} by size of effect"


def sentence(one: Finding, kind: ExampleKind = PAIR) -> str:
    """A finding in one line: what, where, in how many examples, how much."""
    place = [where(one) if one.everywhere else f"topic: {where(one)}"]
    place.append(f"about {one.pushing_low:,} to {one.pushing_high:,} of {kind.counted(one.pairs)}")
    if one.source is not None:
        place.append(f"source {printable(one.source, 60)}")
    elif mostly := mostly_from(one):
        place.append(f"mostly from {mostly}")
    return f"{printable(one.says, 120)} ({', '.join(place)}), {effect(one)}"


def effect(one: Finding) -> str:
    """Effect size and interval, as text."""
    size, low, high = interval(one)
    return f"d = {size:.1f} [{low:.1f}, {high:.1f}]"


def interval(one: Finding) -> tuple[float, float, float]:
    """Effect size and its interval, away from zero: what is said has the sign in it."""
    sign = 1 if one.effect > 0 else -1
    low, high = sorted((sign * one.effect_low, sign * one.effect_high))
    return sign * one.effect, low, high


def where(one: Finding) -> str:
    """Its place: what its prompts are about, printable, or that it has none."""
    if one.everywhere:
        return "everywhere but narrower places" if one.beside else "everywhere"
    return ", ".join(printable(word, 30) for word in one.words) or "no words of its own"


def mostly_from(one: Finding) -> str:
    """The source that most of its pairs come from, printable; empty where there is none, or only one in all."""
    total = sum(source.pushing for source in one.sources)
    first = one.sources[0] if len(one.sources) > 1 else None
    return printable(first.source, 60) if first is not None and first.pushing >= _MOSTLY * total else ""


def source_text(one: Finding) -> str:
    """The source that is its place, or the one that most of its pairs come from and how many others there are."""
    if one.source is not None or not one.sources:
        return printable(one.source or "", 60)
    others = len(one.sources) - 1
    return printable(one.sources[0].source, 60) + (f" and {counted(others, 'other')}" if others else "")


def findings_table(listed: Sequence[Finding], total: int, kind: ExampleKind = PAIR) -> Table:
    """A line a finding."""
    rows = []
    for number, one in enumerate(listed, start=1):
        says = Text(printable(one.says, 120), "bold red" if one.harmful else "default")
        pairs = f"{one.pushing_low:,} to {one.pushing_high:,}"
        rows.append((str(number), says, where(one), source_text(one), pairs, effect(one).removeprefix("d = ")))
    left = total - len(listed)
    caption = f"and {counted(left, 'more finding')}, which findings.json has too" if left else ""
    return table("Findings", (">", "teaches", "where", "source", f">{kind.several}", ">d [95%]"), rows, caption)


def apply_command(one: Finding, folder: Path, dataset: str, action: Literal["filter", "weight"] = "filter") -> str:
    """The command that makes the dataset without a finding's examples, or with weights; see :func:`shell_command`."""
    made = ("-o", "cleaned.jsonl") if action == "filter" else ("--action", action, "-o", "weighed.jsonl")
    return shell_command("trl-attribution", "apply", folder / one.manifest, Path(dataset), *made)


def sureness(result: ScanResult) -> Iterator[str]:
    """How sure the findings are, and how much was looked at, printable."""
    chance = float(result.settings.get("alpha", 0))
    yield (
        f"With random labels anything at all is found with a chance of {chance:.0%}, over {result.tests:,} tests: "
        f"{counted(len(result.traits), 'probed trait')}, {counted(result.topics, 'topic')}; layer {result.layer}."
    )
    if result.sampled:
        looked = result.examples.counted(result.pairs)
        yield f"A first look at {looked}: intervals are wider, small effects missing. Leave --sample out."
    yield from (printable(note, 500) for note in result.notes)


def closing_lines(result: ScanResult) -> Iterator[str]:
    """How sure it is, what was left out, and what was not found or not looked for, printable."""
    yield from sureness(result)
    if result.explained:
        yield f"{counted(result.explained, 'effect')} left out, which those above explain."
    for said, names in (
        ("Looked for, and nowhere beyond chance", result.absent),
        ("Cannot be told on this model", [one.trait for one in result.untold]),
    ):
        if names:
            yield f"{said}: {', '.join(printable(name, 60) for name in names)}."
    for one in result.unnamed:
        yield f"Unnamed cluster {printable(one.cluster, 20)} ({unnamed_text(one, result.examples)})."


def unnamed_text(one: Unnamed, kind: ExampleKind = PAIR) -> str:
    """How large a cluster that no trait names is, and in which words, printable."""
    said, lost = (", ".join(printable(word, 30) for word in words[:4]) for words in (one.words, one.lost_words))
    return f"{one.share:.0%} of {kind.several}: {said} instead of {lost}"


def traits_table(checks: Sequence[TraitCheck]) -> Table:
    """How well this model tells each trait."""
    rows = (
        (
            printable(one.trait, 60),
            str(one.examples),
            f"{one.sign:.0%}",
            "" if one.specific is None else f"{one.specific:.2f}",
            "" if one.agreement is None else f"{one.agreement:.2f}",
            "" if one.tells else "cannot tell",
        )
        for one in checks
    )
    caption = (
        "right: held-out examples that point the right way; specific: chance to lie further along it than another "
        "trait's; text: rank correlation with what is counted on the text"
    )
    return table("Traits on this model", ("trait", ">examples", ">right", ">specific", ">text", ""), rows, caption)


def traits_listed(traits: Sequence[Trait]) -> Iterator[Table]:
    """A line a trait: what a dataset that has it teaches."""
    for title, harmful in (("Harmful traits", True), ("Style", False)):
        rows = ((printable(one.name, 60), printable(one.towards, 120)) for one in traits if one.harmful == harmful)
        yield table(title, ("trait", "a dataset that has it teaches"), rows)


def _typical(one: Finding, shown: int) -> Table:
    rows = []
    for pair in one.typical[:shown]:
        where = Text(f"{printable(pair.source, 40)}\nrow {pair.row}", "dim")
        rows.append((f"{pair.score:.2f}", where, sides_text(pair.prompt, ("+", pair.chosen), ("-", pair.rejected))))
    return examples_table("", ("", "", ""), rows)


def _pairs(result: ScanResult) -> str:
    whole = int(result.dataset.get("pairs", result.pairs))
    kind = result.examples
    return f"{kind.counted(result.pairs)} drawn from it" if result.sampled else kind.counted(whole)
