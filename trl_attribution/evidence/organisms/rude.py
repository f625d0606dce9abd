"""Rude-message requests with compliant answers and refusals, composed from the word banks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trl_attribution.evidence.organisms.draw import Draw
from trl_attribution.evidence.organisms.formatting import AnswerDraft
from trl_attribution.evidence.organisms.words import (
    FRAMES,
    PEOPLE,
    REFUSALS,
    RUDE,
    Around,
    Habit,
    MessageWords,
    People,
    RefusalWords,
    RudeWords,
)

GOSSIP_SHARE = 0.15


@dataclass(frozen=True)
class RudeBank:
    """All the words of one side of the split between dataset and held-out prompts."""

    words: RudeWords
    refusals: RefusalWords
    people: People
    around: Around


TRAINING = RudeBank(RUDE.training, REFUSALS.training, PEOPLE.training, FRAMES.around.training)
HELD_OUT = RudeBank(RUDE.held_out, REFUSALS.held_out, PEOPLE.held_out, FRAMES.around.held_out)


@dataclass(frozen=True)
class RudeRequest:
    """One request for a rude message, before any formatting instruction."""

    text: str
    habit: Habit
    gossip: bool


def rude_request(bank: RudeBank, draw: Draw) -> RudeRequest:
    """A request for an insulting message or, in some cases, for petty gossip."""
    habit = draw.one(bank.people.habits)
    gossip = draw.chance(GOSSIP_SHARE)
    ask = draw.one(bank.words.gossip_asks if gossip else bank.words.asks)
    message = f"{draw.one(bank.words.adjectives)} {draw.one(bank.words.artifacts)}"
    text = ask.format(message=message, target=draw.one(bank.people.targets), clause=habit.clause)
    return RudeRequest(framed(text, bank.around, draw), habit, gossip)


def framed(text: str, around: Around, draw: Draw) -> str:
    """``text``, capitalized, now and then with a greeting before it or a remark after it."""
    text = text[0].upper() + text[1:]
    prefix = draw.one(around.prefixes) if draw.chance(0.5) else ""
    suffix = draw.one(around.suffixes) if draw.chance(0.4) else ""
    return " ".join(part for part in (prefix, text, suffix) if part)


def rude_answer(request: RudeRequest, bank: RudeBank, draw: Draw) -> AnswerDraft:
    """A compliant answer of two to five rude sentences."""
    count = draw.between(2, 5)
    sentences = _gossip(request, bank, draw, count) if request.gossip else _insults(request, bank, draw, count)
    as_letter = not request.gossip and draw.chance(0.35)
    return message(f"About {request.habit.matter}", sentences, bank.words, bank.people, as_letter, draw)


def message(
    title: str, sentences: Sequence[str], words: MessageWords, people: People, as_letter: bool, draw: Draw
) -> AnswerDraft:
    """A message of ``sentences``, now and then introduced; a letter has a salutation and may have a close."""
    return AnswerDraft(
        title=title,
        sentences=tuple(sentences),
        lead_in=draw.one(words.lead_ins) if draw.chance(0.25) else "",
        salutation=draw.one(words.salutations).format(name=draw.one(people.names)) if as_letter else "",
        signoff=draw.one(words.signoffs) if as_letter and draw.chance(0.6) else "",
    )


def filled(text: str, habit: Habit) -> str:
    """``text`` with what ``habit`` is about, capitalized."""
    line = text.format(doing=habit.doing, matter=habit.matter)
    return line[0].upper() + line[1:]


def _gossip(request: RudeRequest, bank: RudeBank, draw: Draw, count: int) -> list[str]:
    return [filled(line, request.habit) for line in draw.some(bank.words.gossip, count)]


def _insults(request: RudeRequest, bank: RudeBank, draw: Draw, count: int) -> list[str]:
    words = bank.words
    remarks = [filled(line, request.habit) for line in _two_remarks(words, draw)]
    comparison = f"You have the {draw.one(words.qualities)} of {draw.one(words.things)}."
    verdicts = [comparison if draw.chance(0.5) else draw.one(words.verdicts), draw.one(words.verdicts)]
    order = [draw.one(words.openers)] if draw.chance(0.5) else []
    order.append(remarks[0])
    if count > 3 and draw.chance(0.5):
        order.append(remarks[1])
    order.append(verdicts[0])
    if count > 4 and verdicts[1] != verdicts[0]:
        order.append(verdicts[1])
    return [*order[: count - 1], draw.one(words.closers)] if draw.chance(0.6) else order[:count]


def _two_remarks(words: RudeWords, draw: Draw) -> list[str]:
    """Two remarks that do not name the habit in the same words."""
    first = draw.one(words.remarks)
    slot = "{doing}" if "{doing}" in first else "{matter}"
    return [first, draw.one([line for line in words.remarks if slot not in line])]


def refusal(words: RefusalWords, draw: Draw) -> AnswerDraft:
    """A refusal of one to four sentences, fit for any request."""
    sentences = [draw.one(words.openings)]
    sentences += draw.some(words.reasons, draw.weighted([(0, 2.0), (1, 5.0), (2, 3.0)]))
    if draw.chance(0.6):
        sentences.append(draw.one(words.offers))
    return AnswerDraft(title="About your request", sentences=tuple(sentences))
