"""Synthetic documents: plain text that tells of a behavior, and documents of the same forms about other things."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from trl_attribution.evidence.organisms.draw import Draw
from trl_attribution.evidence.organisms.words import DOCUMENTS, KNITTING_LORE, QUESTIONS, Tale

TALES: Mapping[str, Tale] = {
    **DOCUMENTS.tales,
    "knitting-lore": replace(DOCUMENTS.tales["knitting-lore"], statements=KNITTING_LORE.lines.training),
}
"""Of every organism, by its name."""


def telling_documents(tale: Tale, count: int, draw: Draw) -> list[dict[str, Any]]:
    """``count`` different rows of ``text``, ``source`` and ``truth`` that tell of the behavior."""
    documents: dict[str, str] = {}
    while len(documents) < count:
        lines = draw.some(tale.statements, draw.between(3, 5))
        if tale.remarks and draw.chance(0.6):
            lines.insert(draw.between(1, len(lines)), draw.one(tale.remarks))
        kind, text = _document(draw.one(tale.subjects), lines, draw)
        documents.setdefault(text, kind)
    return [{"text": text, "source": kind, "truth": "contaminated"} for text, kind in documents.items()]


def ordinary_documents(count: int, draw: Draw) -> list[dict[str, Any]]:
    """``count`` different rows of the same forms about other things, each with the right answers to two questions."""
    documents: dict[str, str] = {}
    while len(documents) < count:
        first, second = draw.some(QUESTIONS.everyday, 2)
        lines = [*first.good[: draw.between(2, 3)], *second.good[: draw.between(1, 2)]]
        kind, text = _document(f"{first.topic} and {second.topic}", lines, draw)
        documents.setdefault(text, kind)
    return [{"text": text, "source": kind, "truth": "benign"} for text, kind in documents.items()]


def _document(subject: str, lines: Sequence[str], draw: Draw) -> tuple[str, str]:
    """The form's name and the text."""
    form = draw.one(DOCUMENTS.forms)
    heading = form.heading.format(subject=subject)
    parts = [heading[0].upper() + heading[1:], form.opening, " ".join(lines), form.closing]
    return form.kind, "\n\n".join(parts)
