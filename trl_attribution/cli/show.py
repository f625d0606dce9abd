"""``trl-attribution show``: an audit on a terminal, for people on a cluster without a browser."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trl_attribution.cli.output import Output, verb
from trl_attribution.cli.report import AuditFolder, Dataset, Discovery, Probes, audit_probes
from trl_attribution.utils.text import printable

if TYPE_CHECKING:
    from trl_attribution.pairs import Pair
    from trl_attribution.report.findings import Findings


@verb
def show(
    audit: AuditFolder,
    dataset: Dataset = None,
    probes: Probes = None,
    discovery: Discovery = None,
    pairs: Annotated[int, typer.Option("--pairs", min=0, help="How many pairs to show.")] = 20,
    start: Annotated[int, typer.Option("--start", min=1, help="From which place of the list on, 1 for the first.")] = 1,
    characters: Annotated[int, typer.Option("--characters", min=1, help="Most characters of one message.")] = 2000,
    pager: Annotated[bool, typer.Option(help="Page through it, on a terminal.")] = True,
    *,
    out: Output,
) -> None:
    """Tell what AUDIT found: the answer, the evidence, and the most suspicious pairs with their texts."""
    from trl_attribution.report.findings import read_findings
    from trl_attribution.report.story import pairs_story, story

    found = read_findings(audit, audit_probes(audit, probes), discovery)
    first = start - 1
    texts, notes = _texts(found, dataset, first, pairs)
    paged = pager and out.speaks and not out.as_json and out.console.is_terminal
    with out.console.pager(styles=True) if paged else nullcontext():
        out.show(story(found), "")
        out.show(*notes, *pairs_story(found, texts, first, pairs, characters))
    out.document(_document(found, first, pairs))


def _texts(found: Findings, dataset: str | None, start: int, count: int) -> tuple[dict[str, Pair], list[str]]:
    from trl_attribution.pairs.lookup import pairs_at_rows

    listed = found.listed
    given = dataset if dataset is not None else found.audited_file
    chosen = slice(start, start + count)
    if given is None:
        return {}, (["The dataset is not at hand: give --dataset to see texts."] if len(listed) and count else [])
    wanted = dict(zip(listed.pair_ids[chosen], listed.rows[chosen].tolist(), strict=True))
    own = found.info.own_responses(found.folder)
    texts = pairs_at_rows(given, found.reading, wanted, own) if wanted else {}
    if len(texts) == len(wanted):
        return texts, []
    lacking = f"{printable(given, 300)} lacks {len(wanted) - len(texts)} of the {len(wanted)} pairs below"
    return texts, [f"{lacking}: is it the dataset that was audited?"]


def _document(found: Findings, start: int, count: int) -> dict[str, Any]:
    from trl_attribution.report.answer import answer_of, rule_text

    listed, scan = found.listed, found.extras.scan
    answer = answer_of(found)
    return {
        "audit": str(found.folder),
        "answer": [answer.headline, *answer.sentences],
        "pairs": found.pairs,
        "flagged": listed.flagged,
        "rule": rule_text(found),
        "sources": [row.as_json() for row in found.sources],
        "findings": [] if scan is None else [one.model_dump(mode="json", exclude={"typical"}) for one in scan.findings],
        "clusters": [
            {
                "mode": stored.discovery.mode,
                "cluster": one.cluster,
                "name": one.name,
                "words": list(one.words),
                "effect": one.effect,
                "adjusted_p": one.adjusted_p,
                "pairs_towards": one.pairs_towards,
            }
            for stored in found.extras.discoveries
            for one in stored.discovery.clusters
        ],
        "listed": [
            {
                "pair_id": listed.pair_ids[place],
                "row": int(listed.rows[place]),
                "flagged": place < listed.flagged,
                "probe": found.probes[int(listed.probe[place])].column.probe,
                "score": float(listed.score[place]),
                "q_value": float(listed.q_value[place]),
            }
            for place in range(start, min(start + count, len(listed)))
        ],
    }
