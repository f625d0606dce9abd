"""What audits, flagged pairs and probes are in a notebook: their rows with texts, and the answer as HTML."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from trl_attribution.pairs.lookup import pairs_at_rows
from trl_attribution.pairs.messages import whole_text
from trl_attribution.utils.text import printable

if TYPE_CHECKING:
    from trl_attribution.audit.folder import Flagged

SHOWN = 10
"""Pairs in the HTML of flagged ones."""
_READ_AT_ONCE = 10_000
"""Pairs whose texts are read in one pass over the dataset, once those that HTML shows have been."""
_SNIPPET = 200


@dataclass(frozen=True)
class FlaggedRow:
    """One flagged pair with its texts."""

    rank: int
    score: float
    q_value: float
    probe: str
    layer: int
    pair_id: str
    row: int
    """Its first row in the dataset, from 0."""
    source: str
    prompt: str | None
    """None where the dataset that was audited is not at hand, as are the responses then."""
    chosen: str | None
    rejected: str | None


def flagged_rows(flagged: Flagged) -> Iterator[FlaggedRow]:
    """The flagged pairs, best rank first, with their texts as the dataset holds them."""
    audit = flagged.audit
    dataset = audit.source if audit.source is not None else Path(audit.info.dataset.found_at)
    at_hand = not isinstance(dataset, Path) or dataset.exists()
    own = audit.own_responses if at_hand else None
    flags, size = iter(flagged.flags), SHOWN
    while some := list(islice(flags, size)):
        size = _READ_AT_ONCE
        rows = {found.pair_id: int(audit.index.rows[found.position]) for found in some}
        texts = pairs_at_rows(dataset, audit.reading, rows, own) if at_hand else {}
        for found in some:
            pair = texts.get(found.pair_id)
            prompt, chosen, rejected = (None,) * 3 if pair is None else map(whole_text, pair.shown)
            yield FlaggedRow(
                rank=found.rank,
                score=found.score,
                q_value=found.q_value,
                probe=found.probe,
                layer=found.layer,
                pair_id=found.pair_id,
                row=rows[found.pair_id],
                source=audit.index.sources[found.position].as_py(),
                prompt=prompt,
                chosen=chosen,
                rejected=rejected,
            )


def flagged_html(flagged: Flagged) -> str:
    """What was found, and the first pairs; dataset text is escaped."""
    said = [one.headline for one in flagged.flags.outcomes.values()]
    rows = [
        (str(one.rank), f"{one.score:.3f}", one.source, *(one.prompt or "", one.chosen or "", one.rejected or ""))
        for one in islice(flagged, SHOWN)
    ]
    return paragraphs(said) + html_table(("rank", "score", "source", "prompt", "chosen", "rejected"), rows)


def paragraphs(lines: Iterable[str]) -> Markup:
    """Lines of text, escaped; the first one bold."""
    shown = [Markup("<p>{}</p>").format(line) for line in lines]
    return Markup("").join([Markup("<b>{}</b>").format(one) for one in shown[:1]] + shown[1:])


def html_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Markup:
    """A table of texts, each made printable, cut short and escaped; nothing without rows."""
    lines = [_line("td", row) for row in rows]
    return Markup("<table>{}{}</table>").format(_line("th", columns), Markup("").join(lines)) if lines else Markup("")


def _line(tag: str, cells: Iterable[str]) -> Markup:
    one = Markup(f"<{tag} style='text-align: left'>{{}}</{tag}>")  # the tag is ours
    return Markup("<tr>{}</tr>").format(Markup("").join(one.format(printable(cell, _SNIPPET)) for cell in cells))
