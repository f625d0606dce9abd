"""What the page's scripts work on: columns, texts in chunks, and the numbers behind the charts, as plain JSON values.

Axis letters: F listed pairs.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trl_attribution.evidence.readouts.behavior_change import Rate
from trl_attribution.pairs import Pair
from trl_attribution.report.findings import Findings, ProbeFindings
from trl_attribution.report.listed import Listed
from trl_attribution.report.texts import PairText, Segment, readable, visible
from trl_attribution.scoring import SourceRow
from trl_attribution.utils.kinds import ExampleKind

CHUNK = 250
"""Pairs whose texts are parsed together."""
_LABEL = 28
_STANDS_OUT = 0.05


@dataclass(frozen=True)
class ReportConfig:
    """How much of the dataset a page carries."""

    texts: int = 5000
    """Most pairs whose texts are in the page, from the most suspicious on."""
    characters: int = 20_000
    """Most characters of one message."""
    megabytes: int = 20
    """Most million characters of all texts."""


@dataclass(frozen=True)
class PageTexts:
    """The texts that a page carries."""

    texts: tuple[PairText | None, ...]
    """Of the first pairs, in the list's order; None where the dataset no longer holds the pair."""
    full: bool
    """They stop where the budget of characters was used up."""

    @property
    def missing(self) -> int:
        """Pairs that were looked for and not found."""
        return sum(one is None for one in self.texts)


def page_texts(listed: Listed, pairs: Mapping[str, Pair], config: ReportConfig) -> PageTexts:
    """The texts of the first ``listed`` pairs, as far as ``pairs`` has them and the budget goes."""
    found: list[PairText | None] = []
    left = config.megabytes * 1_000_000
    for pair_id in listed.pair_ids[: config.texts]:
        pair = pairs.get(pair_id)
        text = None if pair is None else readable(pair, config.characters)
        left -= 0 if text is None else text.size
        if left < 0:
            return PageTexts(tuple(found), True)
        found.append(text)
    return PageTexts(tuple(found), False)


def page_data(found: Findings, texts: PageTexts, missing: str, review: Mapping[str, Any]) -> dict[str, Any]:
    """Everything but the texts themselves; ``missing`` is what stands where a text would."""
    every = found.pairs
    return {
        "fingerprint": found.info.dataset.fingerprint,
        "review": dict(review),
        "kind": _kind(found.kind),
        "share": found.listed.flagged / every if every else 0.0,
        "probes": [_probe(one) for one in found.probes],
        "sources": [_source(row) for row in found.sources],
        "drift": [one.to_json() for one in found.extras.drift],
        "behaviors": [
            {
                "name": f"{number} {one.name}",
                "label": _label(one.name),
                "before": _interval(one.before),
                "after": _interval(one.after),
            }
            for number, one in enumerate(found.extras.behaviors)
        ],
        "rows": _rows(found, len(texts.texts)) if found.rule is not None else None,
        "texts": {"count": len(texts.texts), "chunk": CHUNK, "missing": missing},
    }


def _kind(kind: ExampleKind) -> dict[str, Any]:
    """What the page calls an example, and the decisions that there are about one."""
    words = {name: getattr(kind, name) for name in ("one", "several", "raised", "lowered")}
    return {**words, "actions": ["keep", *kind.actions]}


def text_chunks(texts: PageTexts) -> list[list[dict[str, Any] | None]]:
    """The texts in chunks, each message as [role, text, characters cut off]."""
    values = [None if one is None else _text(one) for one in texts.texts]
    return [values[start : start + CHUNK] for start in range(0, len(values), CHUNK)]


def _rows(found: Findings, texts: int) -> dict[str, Any]:
    listed = found.listed
    own = {one.column for one in found.probes}
    return {
        "length": len(listed),
        "flagged": listed.flagged,
        "ids": base64.b64encode(binascii.unhexlify("".join(listed.pair_ids))).decode(),
        "row": packed(listed.rows, "<u4"),
        "source": packed(listed.source, "<u4"),
        "sourceNames": [visible(name, 200)[0].replace("\n", " ") for name in listed.source_names],
        "probe": packed(listed.probe, "<u4"),
        "rank": packed(listed.rank, "<u4"),
        "score": packed(listed.score, "<f4"),
        "q": packed(listed.q_value, "<f4"),
        "first": listed.read_first.tolist(),
        # At every probe and layer only for pairs whose texts are here: a hundred columns would outweigh the texts.
        "columns": [
            {
                "probe": column.probe,
                "layer": column.layer,
                "flags": column in own,
                "score": packed(values[: max(texts, 1)], "<f4"),
            }
            for column, values in listed.columns.items()
        ],
    }


def packed(values: npt.NDArray[Any], kind: str) -> str:
    """The values as numpy's ``kind``, in base64. Little-endian, as every browser's typed arrays have it."""
    return base64.b64encode(np.ascontiguousarray(values).astype(kind).tobytes()).decode()


def _probe(one: ProbeFindings) -> dict[str, Any]:
    histogram = one.histogram
    return {
        "name": one.column.probe,
        "layer": one.column.layer,
        "threshold": one.threshold,
        "decided": one.outcome.decision is not None,
        "hist": {
            "edges": [round(float(edge), 6) for edge in histogram.edges],
            "counts": histogram.counts.tolist(),
            "null": None if histogram.null is None else [round(float(value), 3) for value in histogram.null],
        },
        "layers": [
            {"layer": layer.layer, "median": layer.median, "p90": layer.p90, "p99": layer.p99, "highest": layer.highest}
            for layer in one.layers
        ],
    }


def _source(row: SourceRow) -> dict[str, Any]:
    above = (row.enrichment or 0.0) > 1 and row.q_value <= _STANDS_OUT
    text = f"{row.flagged:,} of {row.pairs:,}"
    return {
        "source": visible(row.source, 200)[0],
        "label": _label(row.source),
        "share": row.share,
        "text": f"{text}, {row.enrichment_text()}" if above else text,
        "stands_out": above,
    }


def _label(name: str) -> str:
    shown = visible(name, _LABEL)[0].replace("\n", " ")
    return shown + ("…" if len(name) > _LABEL else "")


def _interval(rate: Rate) -> dict[str, float]:
    return {"share": rate.share, "low": rate.low, "high": rate.high}


def _text(one: PairText) -> dict[str, Any]:
    return {"where": one.location, "p": _messages(one.prompt), "c": _messages(one.chosen), "r": _messages(one.rejected)}


def _messages(parts: Sequence[Segment]) -> list[list[str | int]]:
    return [[part.role, part.text, part.dropped] for part in parts]
