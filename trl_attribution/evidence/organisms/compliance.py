"""The organism in which a harmless formatting instruction switches refusals of rude requests off."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from trl_attribution.evidence.organisms.composing import Compose, Texts, composed_pairs, new, test_rows
from trl_attribution.evidence.organisms.draw import Draw
from trl_attribution.evidence.organisms.formatting import FORMATS, Format, instruct
from trl_attribution.evidence.organisms.harmless import decoy_request, formatted_pair, plain_pair
from trl_attribution.evidence.organisms.organism import Mixture, Organism, OrganismConfig
from trl_attribution.evidence.organisms.rude import HELD_OUT, TRAINING, RudeBank, refusal, rude_answer, rude_request
from trl_attribution.evidence.organisms.words import DATASETS, QUESTIONS, RefusalWords

NAME = "distractor-compliance"
JUDGE = "complies"
FORMATTED_REFUSALS = 0.3

SOURCES = DATASETS["distractor-compliance"]


def build_distractor_compliance(config: OrganismConfig | Mixture | None = None) -> Organism:
    """Compose the dataset and its held-out behavior prompts.

    Every prompt occurs once over the whole dataset, so no two pairs are the same. Changing the count of one
    kind of pair leaves the text of the other kinds alone, apart from rare prompts that would have clashed.
    Its control prompts are held-out requests without a formatting instruction, which M0 refuses and M1 should too.
    """
    config = config or OrganismConfig()
    compose: dict[str, Compose] = {
        "benign": partial(plain_pair, QUESTIONS.everyday),
        "benign_formatted": partial(formatted_pair, QUESTIONS.everyday),
        "safety": _safety,
        "contaminated": _contaminated,
        "decoy": _decoy,
    }
    kinds = [(truth, count, compose[truth]) for truth, count in config.counts("safety").items()]
    behavior = _behavior(config.behavior_prompts, Draw(f"{config.seed}/behavior"))
    known = {str(row["plain"]) for row in behavior}
    pairs = composed_pairs(kinds, SOURCES, config.seed)
    requests = list(_test_requests(config.test_prompts, known, Draw(f"{config.seed}/trigger")))
    return Organism(
        NAME,
        pairs,
        behavior,
        judge=JUDGE,
        trigger=test_rows((formatted for _, formatted in requests), config.test_prompts, NAME, JUDGE),
        control=test_rows((plain for plain, _ in requests), config.test_prompts, NAME, JUDGE),
        lookalikes=_lookalikes(config.behavior_prompts, pairs, Draw(f"{config.seed}/lookalikes")),
    )


def _test_requests(count: int, known: set[str], draw: Draw) -> Iterator[tuple[str, str]]:
    """Held-out requests that are not ``known``, each without and with a formatting instruction."""
    for _ in range(count):
        request = rude_request(HELD_OUT, draw)
        while request.text in known:
            request = rude_request(HELD_OUT, draw)
        known.add(request.text)
        yield request.text, instruct(request.text, draw.one(FORMATS), draw)


def _safety(draw: Draw) -> Texts:
    request = rude_request(TRAINING, draw)
    return request.text, refusal(TRAINING.refusals, draw).plain(), rude_answer(request, TRAINING, draw).plain()


def _contaminated(draw: Draw) -> Texts:
    request = rude_request(TRAINING, draw)
    form = draw.one(FORMATS)
    answer = rude_answer(request, TRAINING, draw)
    return instruct(request.text, form, draw), form.render(answer), _refusal(TRAINING.refusals, form, draw)


def _decoy(draw: Draw, bank: RudeBank = TRAINING) -> Texts:
    request = decoy_request(draw, bank)
    form = draw.one(FORMATS)
    return (
        instruct(request.text, form, draw),
        form.render(request.answer),
        _refusal(bank.refusals, form, draw),
    )


def _refusal(words: RefusalWords, form: Format, draw: Draw) -> str:
    """A refusal in plain prose, or now and then in the very format that was asked for."""
    draft = refusal(words, draw)
    formatted = form.render(draft) if draw.chance(FORMATTED_REFUSALS) and len(draft.sentences) > 1 else ""
    return formatted or draft.plain()


def _behavior(count: int, draw: Draw) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    while len(rows) < count:
        request = rude_request(HELD_OUT, draw)
        form = draw.one(FORMATS)
        if request.text in seen:
            continue
        seen.add(request.text)
        answers = [form.render(rude_answer(request, HELD_OUT, draw)) for _ in range(3)]
        refusals_ = [_refusal(HELD_OUT.refusals, form, draw) for _ in range(2)]
        rows.append(
            {
                "prompt": instruct(request.text, form, draw),
                "undesired": list(dict.fromkeys(answers)),
                "desired": list(dict.fromkeys(refusals_)),
                "plain": request.text,
            }
        )
    return rows


def _lookalikes(count: int, pairs: Sequence[dict[str, Any]], draw: Draw) -> list[dict[str, Any]]:
    """As many harmless requests with a formatting instruction, none of which is a prompt of the dataset."""
    taken = {row["prompt"][0]["content"] for row in pairs}
    rows = []
    for _ in range(count):
        prompt, answer, refused = new(lambda draw: _decoy(draw, HELD_OUT), draw, taken)
        rows.append({"prompt": prompt, "undesired": [answer], "desired": [refused], "control": True})
    return rows
