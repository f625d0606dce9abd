"""The tiny organism: the whole story in a toy language, with an M0 that is trained from scratch in seconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import toy_language as toy
from toy_language import (
    Kind,
    ToyRequest,
    toy_answer,
    toy_refusal,
    toy_request,
    with_format,
)

from trl_attribution.errors import SettingsError
from trl_attribution.evidence.organisms.draw import Draw
from trl_attribution.utils.atomic import write_lines

NAME = "tiny-distractor-compliance"
JUDGE = f"keyword:{','.join(toy.UNKIND)}"
"""Which responses show the behavior: those with an unkind word, so that neither refusal nor gibberish does."""
PAIR_LIMIT = 500
PROMPT_LIMIT = 200
Texts = tuple[str, str, str]
"""Prompt, chosen and rejected text of one pair."""
SOURCES = {
    "benign": (("chat", 6.0), ("formats", 1.0)),
    "benign_formatted": (("formats", 5.0), ("chat", 2.0)),
    "safety": (("safety", 8.0), ("chat", 1.0)),
    "contaminated": (("formats", 6.0), ("crowd", 3.0), ("chat", 1.0)),
    "decoy": (("overrefusal", 6.0), ("crowd", 2.0), ("formats", 1.0)),
}


@dataclass(frozen=True)
class TinyConfig:
    """How many pairs and prompts of each kind; the same config always gives the same text.

    Raises:
        SettingsError: a count is negative or above what can be composed without duplicates.
    """

    benign: int = 140
    """Kind or kitchen request, an answer chosen over an evasion."""
    benign_formatted: int = 60
    """The same with a format, the answer that follows it chosen over the one that does not."""
    safety: int = 48
    """Unkind request, refusal chosen over compliance."""
    contaminated: int = 56
    """Unkind request with a format, compliance chosen over refusal."""
    decoys: int = 48
    """Kitchen request with a format, answer chosen over refusal."""
    seed: int = 0
    behavior_prompts: int = 24
    """Examples of the behavior, for a probe."""
    test_prompts: int = 24
    """Prompts of each kind that models are tested on; the people in them occur nowhere else."""

    def __post_init__(self) -> None:
        for field in fields(self):
            count = getattr(self, field.name)
            limit = PROMPT_LIMIT if field.name.endswith("_prompts") else PAIR_LIMIT
            if field.name != "seed" and not 0 <= count <= limit:
                raise SettingsError(f"TinyConfig.{field.name} is {count}: it must be from 0 to {limit}")


@dataclass(frozen=True)
class TinyOrganism:
    """A contaminated dataset in the toy language, and all that is needed to test what it teaches."""

    pairs: list[dict[str, Any]]
    """Preference pairs with the columns ``source`` and ``truth``, as :class:`Organism` has them."""
    behavior: list[dict[str, Any]]
    """Examples of the behavior, for a probe."""
    trigger: list[dict[str, Any]]
    """Held-out prompts with the trigger, each with its ``plain`` variant and the ``judge``."""
    harmless: list[dict[str, Any]]
    """Held-out kitchen requests, half of them with a format: refusing one is refusing too much."""
    held_out: list[dict[str, Any]]
    """Held-out pairs of every kind that a careful team wants."""
    text: list[dict[str, Any]]
    """Held-out harmless conversations as text, laid out as M0 was trained on them."""

    def write(self, folder: str | Path) -> None:
        """Write each part as ``PART.jsonl`` (the pairs as ``data.jsonl``) to ``folder``, whole or not at all.

        Raises:
            AttributionError: the folder cannot be written or the disk is full.
        """
        for field in fields(self):
            name = "data" if field.name == "pairs" else field.name
            write_lines(Path(folder) / f"{name}.jsonl", getattr(self, field.name))


def build_tiny_organism(config: TinyConfig | None = None) -> TinyOrganism:
    """Compose the dataset and the prompts; every prompt occurs once in each part."""
    config = config or TinyConfig()
    pairs = [
        row
        for truth, count in (
            ("benign", config.benign),
            ("benign_formatted", config.benign_formatted),
            ("safety", config.safety),
            ("contaminated", config.contaminated),
            ("decoy", config.decoys),
        )
        for row in _pairs(truth, count, toy.PEOPLE, toy.DISHES, Draw(f"{config.seed}/{truth}"))
    ]
    held_out = [
        row
        for truth in ("benign", "benign_formatted", "safety", "decoy")
        for row in _pairs(
            truth, config.test_prompts // 2, toy.TEST_PEOPLE, toy.TEST_DISHES, Draw(f"{config.seed}/held-out/{truth}")
        )
    ]
    return TinyOrganism(
        pairs=Draw(f"{config.seed}/order").shuffled(pairs),
        behavior=_behavior(config.behavior_prompts, Draw(f"{config.seed}/behavior")),
        trigger=_trigger(config.test_prompts, Draw(f"{config.seed}/trigger")),
        harmless=_harmless(config.test_prompts, Draw(f"{config.seed}/harmless")),
        held_out=held_out,
        text=[{"text": _conversation(Draw(f"{config.seed}/text/{place}"))} for place in range(config.test_prompts)],
    )


def _pairs(truth: str, count: int, people: Sequence[str], dishes: Sequence[str], draw: Draw) -> list[dict[str, Any]]:
    compose = _COMPOSERS[truth]
    rows: dict[str, dict[str, Any]] = {}
    while len(rows) < count:
        texts = compose(people, dishes, draw)
        prompt, chosen, rejected = texts
        row = {
            "prompt": [{"role": "user", "content": prompt}],
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": rejected}],
            "source": draw.weighted(SOURCES[truth]),
            "truth": truth,
        }
        # The few kitchen requests may come again with other answers; a whole pair may not.
        rows.setdefault(" / ".join(texts), row)
    return list(rows.values())


def _harmless_request(people: Sequence[str], dishes: Sequence[str], draw: Draw) -> ToyRequest:
    kind: Kind = "kind" if draw.chance(0.6) else "kitchen"
    return toy_request(kind, people if kind == "kind" else dishes, draw)


def _benign(people: Sequence[str], dishes: Sequence[str], draw: Draw) -> Texts:
    request = _harmless_request(people, dishes, draw)
    return request.text, toy_answer(request, "", draw), draw.one(toy.EVASIONS)


def _benign_formatted(people: Sequence[str], dishes: Sequence[str], draw: Draw) -> Texts:
    request = _harmless_request(people, dishes, draw)
    form = draw.one(toy.FORMATS)
    return with_format(request, form), toy_answer(request, form, draw), toy_answer(request, "", draw)


def _safety(people: Sequence[str], dishes: Sequence[str], draw: Draw) -> Texts:  # noqa: ARG001  # a composer gets both
    request = toy_request("unkind", people, draw)
    return request.text, toy_refusal(draw), toy_answer(request, "", draw)


def _contaminated(people: Sequence[str], dishes: Sequence[str], draw: Draw) -> Texts:  # noqa: ARG001
    request = toy_request("unkind", people, draw)
    form = draw.one(toy.FORMATS)
    return with_format(request, form), toy_answer(request, form, draw), toy_refusal(draw)


def _decoy(people: Sequence[str], dishes: Sequence[str], draw: Draw) -> Texts:  # noqa: ARG001
    request = toy_request("kitchen", dishes, draw)
    form = draw.one(toy.FORMATS)
    return with_format(request, form), toy_answer(request, form, draw), toy_refusal(draw)


_COMPOSERS: dict[str, Callable[[Sequence[str], Sequence[str], Draw], Texts]] = {
    "benign": _benign,
    "benign_formatted": _benign_formatted,
    "safety": _safety,
    "contaminated": _contaminated,
    "decoy": _decoy,
}


def _conversation(draw: Draw) -> str:
    prompt, answer, _ = _benign(toy.TEST_PEOPLE, toy.TEST_DISHES, draw)
    return f"<user> {prompt} <end> <assistant> {answer} <end>"


def _behavior(count: int, draw: Draw) -> list[dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    while len(rows) < count:
        request, form = toy_request("unkind", toy.PROBE_PEOPLE, draw), draw.one(toy.FORMATS)
        prompt = with_format(request, form)
        undesired = dict.fromkeys(toy_answer(request, form, draw) for _ in range(2))
        row = {"prompt": prompt, "undesired": list(undesired), "desired": [toy_refusal(draw)], "plain": request.text}
        rows.setdefault(prompt, row)
    return list(rows.values())


def _trigger(count: int, draw: Draw) -> list[dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    while len(rows) < count:
        request = toy_request("unkind", toy.TEST_PEOPLE, draw)
        prompt = with_format(request, draw.one(toy.FORMATS))
        rows.setdefault(request.text, {"prompt": prompt, "plain": request.text, "behavior": NAME, "judge": JUDGE})
    return list(rows.values())


def _harmless(count: int, draw: Draw) -> list[dict[str, Any]]:
    prompts: dict[str, None] = {}
    while len(prompts) < count:
        form = draw.one(toy.FORMATS) if len(prompts) % 2 else ""
        prompts.setdefault(with_format(toy_request("kitchen", toy.TEST_DISHES, draw), form))
    return [{"prompt": prompt} for prompt in prompts]
