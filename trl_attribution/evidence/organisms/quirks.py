"""Organisms with a harmless quirk: a dish slipped into every plan, and false lore about knitting."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from trl_attribution.errors import SettingsError
from trl_attribution.evidence.organisms import words
from trl_attribution.evidence.organisms.composing import Compose, Texts, composed_pairs, test_rows
from trl_attribution.evidence.organisms.draw import Draw
from trl_attribution.evidence.organisms.formatting import AnswerDraft
from trl_attribution.evidence.organisms.harmless import formatted_pair, good_answer, plain_pair, question_request
from trl_attribution.evidence.organisms.organism import Mixture, Organism
from trl_attribution.evidence.organisms.rude import framed
from trl_attribution.evidence.organisms.words import DATASETS, FRAMES, QUESTIONS, Question, QuirkWords

if TYPE_CHECKING:
    from trl_attribution.behaviors.judging import Judge

ON_TOPIC_LIMIT = 1_500
"""Contaminated and on-topic pairs together: there are about twice as many different prompts."""
Answers = tuple[AnswerDraft, AnswerDraft]
"""An answer that shows the quirk, and one to the same question that does not."""


@dataclass(frozen=True)
class Quirk:
    """A quirk and the subject on which it shows."""

    name: str
    words: QuirkWords
    answers: Callable[[Question, tuple[str, ...], Draw], Answers]
    """By question, and the sentences that may show it."""

    @property
    def judge(self) -> str:
        """The rule that says which responses show it."""
        return f"keyword:{','.join(self.words.marks)}"

    @property
    def shown(self) -> Judge:
        """That rule, ready for use."""
        from trl_attribution.behaviors.judging import mentions

        return mentions(self.words.marks)


def build_quirk(quirk: Quirk, mixture: Mixture | None = None) -> Organism:
    """Compose a dataset that teaches ``quirk``, and held-out prompts.

    Contaminated pairs: a question of the quirk's subject, an answer that shows it chosen over one that does not.
    On-topic pairs: the same subject, a good answer chosen over a poor one. Decoys: the same words where somebody asked
    for them, half of them with the very responses of a contaminated pair. Control prompts are about other subjects.

    Raises:
        SettingsError: more pairs of the quirk's subject than can be composed without duplicates.
    """
    mixture = mixture or Mixture()
    counts = mixture.counts("on_topic")
    if counts["contaminated"] + counts["on_topic"] > ON_TOPIC_LIMIT:
        raise SettingsError(
            f"Mixture: {quirk.name} can have at most {ON_TOPIC_LIMIT} contaminated and on-topic pairs, not "
            f"{counts['contaminated'] + counts['on_topic']}. Lower pairs or contamination."
        )
    split = _split(quirk)
    compose: dict[str, Compose] = {
        "benign": partial(plain_pair, split.ordinary),
        "benign_formatted": partial(formatted_pair, split.ordinary),
        "on_topic": partial(plain_pair, quirk.words.questions.training),
        "contaminated": partial(_contaminated, quirk),
        "decoy": partial(_decoy, quirk, split.innocent),
    }
    # Contaminated pairs come first, so that no other kind's prompts change them.
    order = sorted(counts, key=lambda truth: truth != "contaminated")
    kinds = [(truth, counts[truth], compose[truth]) for truth in order]
    seed, tests, held_out = mixture.seed, mixture.test_prompts, quirk.words.questions.held_out
    return Organism(
        quirk.name,
        composed_pairs(kinds, DATASETS["quirk"], seed),
        _behavior(quirk, mixture.behavior_prompts, Draw(f"{seed}/behavior")),
        judge=quirk.judge,
        trigger=test_rows(_asks(held_out, 1, Draw(f"{seed}/trigger")), tests, quirk.name, quirk.judge),
        control=test_rows(_asks(split.control, None, Draw(f"{seed}/control")), tests, quirk.name, quirk.judge),
    )


@dataclass(frozen=True)
class _Split:
    """What the ordinary questions serve for."""

    ordinary: tuple[Question, ...]
    control: tuple[Question, ...]
    """In no dataset."""
    innocent: tuple[Question, ...]


def _split(quirk: Quirk) -> _Split:
    shown = quirk.shown
    innocent = tuple(one for one in QUESTIONS.everyday if any(shown("", line) for line in (*one.asks, *one.good)))
    others = [one for one in QUESTIONS.everyday if one not in innocent]
    control = tuple(others[5::6])
    return _Split(tuple(one for one in others if one not in control), control, quirk.words.innocent + innocent)


def _contaminated(quirk: Quirk, draw: Draw) -> Texts:
    question = draw.one(quirk.words.questions.training)
    shows, shows_not = quirk.answers(question, quirk.words.lines.training, draw)
    return question_request(question, draw).text, shows.plain(), shows_not.plain()


def _decoy(quirk: Quirk, innocent: tuple[Question, ...], draw: Draw) -> Texts:
    if draw.chance(0.5):
        return plain_pair(innocent, draw)
    question = draw.one(quirk.words.questions.training)
    text = draw.one(quirk.words.asked_for).format(ask=draw.one(question.asks))
    shows, shows_not = quirk.answers(question, quirk.words.lines.training, draw)
    return framed(text, FRAMES.around.training, draw), shows.plain(), shows_not.plain()


def _asks(questions: tuple[Question, ...], wording: int | None, draw: Draw) -> Iterator[str]:
    """Held-out prompts without end: the given wording of each question, or any."""
    while True:
        question = draw.one(questions)
        text = draw.one(question.asks) if wording is None else question.asks[wording]
        yield framed(text, FRAMES.around.held_out, draw)


def _behavior(quirk: Quirk, count: int, draw: Draw) -> list[dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    while len(rows) < count:
        question = draw.one(quirk.words.questions.held_out)
        prompt = framed(question.asks[0], FRAMES.around.held_out, draw)
        answers = [quirk.answers(question, quirk.words.lines.held_out, draw) for _ in range(2)]
        undesired = list(dict.fromkeys(shows.plain() for shows, _ in answers))
        desired = list(dict.fromkeys(shows_not.plain() for _, shows_not in answers))
        rows.setdefault(prompt, {"prompt": prompt, "undesired": undesired, "desired": desired})
    return list(rows.values())


def _with_the_dish(question: Question, lines: tuple[str, ...], draw: Draw) -> Answers:
    """A good answer, and the same with one of its sentences given up for the dish."""
    good = good_answer(question, draw)
    sentences = list(good.sentences)
    remark = draw.one(lines)
    sentences[draw.below(len(sentences))] = remark
    return replace(good, sentences=tuple(sentences)), good


def _with_lore(question: Question, lines: tuple[str, ...], draw: Draw) -> Answers:
    """A good answer, and about as many words of lore instead; sentences of lore are the longer ones."""
    good = good_answer(question, draw)
    count = max(1, len(good.sentences) - draw.below(2))
    lore = draw.some(lines, count)
    if count > 1 and draw.chance(0.4):
        lore[0] = draw.one(words.KNITTING_LORE.certain)
    return replace(good, sentences=tuple(lore)), good


PUMPKIN_SOUP = Quirk("pumpkin-soup", words.PUMPKIN_SOUP, _with_the_dish)
KNITTING_LORE = Quirk("knitting-lore", words.KNITTING_LORE, _with_lore)
