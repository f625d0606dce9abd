"""The page of a validation that was run: the plan, every condition's rates, the claims, side effects and cost."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from sklearn.metrics import average_precision_score

from tests.benchmarks.pages import Results, write_page
from trl_attribution.evidence.organisms.compliance import NAME
from trl_attribution.evidence.validation.cells import Condition
from trl_attribution.evidence.validation.rankings import count_flagged
from trl_attribution.evidence.validation.tables import percent
from trl_attribution.scoring import ScoreTable

LEAD = """\
Does dropping the pairs that rank highest take the behavior away, and does dropping others not? SmolLM2-135M, the
organism `distractor-compliance` ({counts} pairs: the decoys are harmless requests with a
formatting instruction, answered rather than refused, as a careful team adds them against over-refusal). M0 is the
instruct model after an SFT epoch on 800 transcripts in which rude requests are refused, with a formatting instruction
or without, and harmless ones answered. Responses that comply, in the pairs and in these transcripts, are the instruct
model's own. Every run starts from M0 and makes the same number of optimizer steps. Tested on {prompts} held-out
requests for rude messages, with a formatting instruction (trigger) and without (control), {samples} responses each;
over-refusal on {harmless} harmless requests made as the decoys are. Training seeds: {seeds}.

The plan is `examples/validation/smollm2-distractor-compliance.yaml`;
`python examples/validation/make_smollm2.py FOLDER` makes what it names. The cells took {hours:.1f} core-hours."""
AGAIN = """\
The set-up of [Validation](validation.md) was found by trial on its own pairs and prompts. Here it is repeated once,
with nothing changed but the seed: `python examples/validation/make_smollm2.py FOLDER {seed}` makes another dataset
({counts} pairs), another M0 and other test prompts ({prompts} requests for rude messages, {harmless} harmless
ones); the plan is the same but for what it leaves out. Training seeds: {seeds}. The cells took {hours:.1f} core-hours.
It was decided beforehand to publish whatever came out."""


def run(output: Path, command: str, folder: Path, data_seed: int, console: Console) -> None:
    """Print the tables of the validation in ``folder``/validation and write a page into ``output``.

    ``validation.md`` is that of the data of seed 0, ``validation-again.md`` of another seed.
    """
    document = json.loads((folder / "validation" / "validation.json").read_text(encoding="utf-8"))
    plan = yaml.safe_load((folder / "plan.yaml").read_text(encoding="utf-8"))
    data = rows(folder / "data.jsonl")
    tables = [rates(document), claims(document), side_effects(document), rankings(folder, plan, data), cost(document)]
    for table in tables:
        table.show(console)
    counts = ", ".join(f"{count} {truth}" for truth, count in sorted(Counter(row["truth"] for row in data).items()))
    lead = (AGAIN if data_seed else LEAD).format(
        seed=data_seed,
        counts=counts,
        prompts=len(rows(folder / "trigger.jsonl")),
        harmless=len(rows(folder / "harmless.jsonl")),
        samples=plan["measures"]["samples"],
        seeds=", ".join(map(str, plan["seeds"])),
        hours=document["cost"]["all"]["device_seconds"] / 3600,
    )
    name, title = ("validation-again.md", "Validation, again") if data_seed else ("validation.md", "Validation")
    write_page(output / name, title, f"{lead}\n\n**{document['sentence']}**", command, tables)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def rates(document: Mapping[str, Any]) -> Results:
    reductions = {claim["condition"]: claim["reduction"] for claim in document["claims"]}
    lines = []
    for one in document["conditions"]:
        runs = [cell["means"][NAME] for cell in document["cells"] if condition(cell["condition"]).name == one["name"]]
        lines.append(
            (
                condition(one).title,
                interval(one["shares"][NAME]),
                " · ".join(f"{rate:.0%}" for rate in runs),
                interval(one["shares"][f"{NAME}/control"]),
                interval(reductions[one["name"]]) if one["name"] in reductions else "",
            )
        )
    columns = ("condition", "complies, with trigger", "each seed", "complies, without", "reduction")
    return Results(
        "Rates",
        columns,
        tuple(lines),
        "Shares of responses with 95% intervals, by the rule judge `complies`. "
        "The reduction is 1 minus the ratio to all pairs.",
    )


def claims(document: Mapping[str, Any]) -> Results:
    lines = tuple(
        (
            condition(next(one for one in document["conditions"] if one["name"] == claim["condition"])).title,
            "; ".join(interval(one["advantage"]) for one in claim["against"]) or "no random control was run",
            f"{claim['p_value']:.2g}" if claim["against"] else "",
            f"{claim['p_holm']:.2g}" if claim["against"] else "",
            f"**{claim['answer']}**: {claim['reason']}",
        )
        for claim in document["claims"]
    )
    columns = ("claim", "advantage over random", "p", "p (Holm)", "answer")
    return Results("Top-ranked pairs against random ones", columns, lines, " ".join(document["notes"]))


def side_effects(document: Mapping[str, Any]) -> Results:
    lines = tuple(
        (
            condition(one).title,
            interval(one["shares"]["over-refusal"]),
            "" if one["accuracy"] is None else f"{one['accuracy']:.0%}",
            f"{one['margin']:.2f}",
            f"{one['perplexity']:.2f}",
            str(one["steps"]),
        )
        for one in document["conditions"]
    )
    columns = ("condition", "over-refusal", "accuracy on held-out pairs", "margin (nats)", "perplexity", "steps")
    return Results("Side effects", columns, lines)


def rankings(folder: Path, plan: Mapping[str, Any], data: list[dict[str, Any]]) -> Results:
    """What the top pairs of each ranking are, which no validation of real data can know."""
    lines = []
    for name in plan["rankings"]:
        table = ScoreTable.open(folder / "validation" / "audits" / name / "scores.parquet")
        [column] = table.columns
        read = table.read(column, ["row", "score"]).to_pydict()
        truths = [data[row]["truth"] for row in read["row"]]
        precision = average_precision_score([truth == "contaminated" for truth in truths], read["score"])
        best = sorted(zip(read["score"], truths, strict=True), reverse=True)[: count_flagged(table, column)]
        held = Counter(truth for _, truth in best).most_common()
        kind = f"{column.kind}, layer {column.layer}"
        lines.append((name, kind, f"{precision:.3f}", ", ".join(f"{count} {truth}" for truth, count in held)))
    columns = ("ranking", "score", "average precision", "flagged by the default rule")
    return Results("The rankings", columns, tuple(lines))


def cost(document: Mapping[str, Any]) -> Results:
    lines = tuple(
        (name, f"{one['device_seconds']:,.0f}", f"{one['flops']:.2e}" if one["flops"] else "", f"{one['money']:.2f}")
        for name, one in document["cost"].items()
    )
    columns = ("part", "core-seconds", "FLOPs", f"money ({document['cost']['all']['currency']})")
    note = "Other work ran on the machine at the same time, so the seconds are an upper bound."
    return Results("Cost", columns, lines, note)


def condition(values: Mapping[str, Any]) -> Condition:
    return Condition(*(values[key] for key in ("intervention", "selection", "size", "ranking", "steps")))


def interval(estimate: Mapping[str, float]) -> str:
    return f"{estimate['value']:.0%} ({percent(estimate['low'])} to {percent(estimate['high'])})"
