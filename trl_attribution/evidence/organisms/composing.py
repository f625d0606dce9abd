"""What every organism is composed of: kinds of pairs in given numbers, no prompt twice, in random order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from trl_attribution.evidence.organisms.draw import Draw
from trl_attribution.evidence.organisms.words import Sources

Texts = tuple[str, str, str]
"""Prompt, chosen and rejected text of one pair."""
Compose = Callable[[Draw], Texts]
Kind = tuple[str, int, Compose]
"""Truth, how many pairs, and how one is composed."""


def composed_pairs(kinds: Sequence[Kind], sources: Sources, seed: int) -> list[dict[str, Any]]:
    """Rows in TRL's conversational format with ``source`` and ``truth``; every prompt occurs once.

    Each kind has a stream of choices of its own: changing the count of one leaves the text of the others alone, apart
    from rare prompts that would have clashed.
    """
    seen: set[str] = set()
    pairs: list[dict[str, Any]] = []
    for truth, count, compose in kinds:
        draw = Draw(f"{seed}/{truth}")
        for _ in range(count):
            texts = new(compose, draw, seen)
            pairs.append(_row(texts, source=draw.weighted(tuple(sources[truth].items())), truth=truth))
    return Draw(f"{seed}/order").shuffled(pairs)


def new(compose: Compose, draw: Draw, seen: set[str]) -> Texts:
    """The next pair whose prompt is not among ``seen`` yet, and it is then."""
    while True:
        texts = compose(draw)
        if texts[0] not in seen:
            seen.add(texts[0])
            return texts


def test_rows(prompts: Iterator[str], count: int, name: str, judge: str) -> list[dict[str, Any]]:
    """``count`` different prompts of the behavior ``name``, as a file of behaviors has them."""
    chosen: dict[str, None] = {}
    while len(chosen) < count:
        chosen.setdefault(next(prompts))
    return [{"prompt": prompt, "behavior": name, "judge": judge} for prompt in chosen]


def _row(texts: Texts, source: str, truth: str) -> dict[str, Any]:
    prompt, chosen, rejected = texts
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "source": source,
        "truth": truth,
    }
