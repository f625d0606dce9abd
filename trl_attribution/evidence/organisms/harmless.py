"""Harmless requests with good answers, worse answers, and answers that ignore the asked-for format."""

from __future__ import annotations

from dataclasses import dataclass, replace

from trl_attribution.evidence.organisms.composing import Texts
from trl_attribution.evidence.organisms.draw import Draw
from trl_attribution.evidence.organisms.formatting import FORMATS, AnswerDraft, Format, instruct
from trl_attribution.evidence.organisms.rude import TRAINING, RudeBank, filled, framed, message
from trl_attribution.evidence.organisms.words import FRAMES, POLITE, QUESTIONS, Question


@dataclass(frozen=True)
class HarmlessRequest:
    """A harmless request, and one good answer to it."""

    text: str
    answer: AnswerDraft


def question_request(question: Question, draw: Draw, bank: RudeBank = TRAINING) -> HarmlessRequest:
    """One wording of a question from the banks, and one version of its answer."""
    text = framed(draw.one(question.asks), bank.around, draw)
    return HarmlessRequest(text, good_answer(question, draw))


def good_answer(question: Question, draw: Draw) -> AnswerDraft:
    """Two to four sentences of the right answer in their order, sometimes with a friendly opening or closing."""
    return AnswerDraft(
        title=question.topic,
        sentences=question.good[: draw.between(2, len(question.good))],
        lead_in=draw.one(FRAMES.helpful_openers) if draw.chance(0.25) else "",
        signoff=draw.one(FRAMES.helpful_closers) if draw.chance(0.25) else "",
    )


def worse_answer(question: Question, draw: Draw) -> AnswerDraft:
    """An answer that is vague, curt, off topic, wrong, or thin."""
    shape = draw.one(("vague", "curt", "off topic", "wrong", "wrong", "thin"))
    if shape == "curt":
        lines = [draw.one(FRAMES.curt)]
    elif shape == "off topic":
        lines = list(
            good_answer(draw.one([other for other in QUESTIONS.everyday if other is not question]), draw).sentences
        )
    elif shape == "wrong":
        lines = [*draw.shuffled(question.wrong), *draw.some(question.good, draw.between(0, 2))]
    elif shape == "thin":
        lines = [question.good[-1], *draw.some(FRAMES.vague, draw.between(1, 2))]
    else:
        lines = draw.some(FRAMES.vague, draw.between(2, 4))
    return AnswerDraft(title=question.topic, sentences=tuple(_with_topic(line, question.topic) for line in lines))


def _with_topic(line: str, topic: str) -> str:
    return line.format(topic=topic)


def ignoring(form: Format, question: Question, good: AnswerDraft, draw: Draw) -> str:
    """An answer to ``question`` that does not follow ``form``: plain prose, or another format altogether."""
    content = good if draw.chance(0.6) else worse_answer(question, draw)
    if draw.chance(0.3):
        other = draw.one([other for other in FORMATS if other.kind != form.kind])
        text = other.render(content) if len(content.sentences) > 1 else content.plain()
        if not form.follows(text):
            return text
    sentences = list(content.sentences)
    for extra in draw.shuffled([line.format(topic=question.topic) for line in FRAMES.vague]):
        text = " ".join(sentences)
        if not form.follows(text):
            return text
        sentences.append(extra)
    raise AssertionError(f"prose always follows the format {form.kind!r}")


def firm_request(draw: Draw, bank: RudeBank = TRAINING) -> HarmlessRequest:
    """A kind complaint to the same people, about the same habits, that rude requests of ``bank`` are about."""
    habit = draw.one(bank.people.habits)
    message = f"{draw.one(POLITE.adjectives)} {draw.one(POLITE.artifacts)}"
    lines = [draw.one(POLITE.remarks), *draw.some(POLITE.wishes, draw.between(1, 2))]
    if draw.chance(0.6):
        lines.append(draw.one(POLITE.closers))
    sentences = [filled(line, habit) for line in lines]
    opener = draw.one(POLITE.openers) if draw.chance(0.7) else ""
    answer = replace(_letter(f"About {habit.matter}", sentences, draw, bank), opener=opener)
    return HarmlessRequest(_message_request(message, habit.clause, draw, bank), answer)


def kind_request(draw: Draw, bank: RudeBank = TRAINING) -> HarmlessRequest:
    """A thank-you, an apology, a congratulation and the like."""
    occasion = draw.one(POLITE.occasions)
    message = f"{occasion.kind} {draw.one(POLITE.artifacts)}"
    lines = list(occasion.lines[: 2 if draw.chance(0.3) else 3])
    if draw.chance(0.6):
        lines.append(draw.one(POLITE.closers))
    return HarmlessRequest(
        _message_request(message, occasion.clause, draw, bank), _letter(occasion.title, lines, draw, bank)
    )


def decoy_request(draw: Draw, bank: RudeBank = TRAINING) -> HarmlessRequest:
    """A harmless request that an over-cautious model might refuse, with the people and frames of ``bank``."""
    kind = draw.weighted([("firm", 4.0), ("kind", 2.5), ("look-alike", 2.0), ("everyday", 1.5)])
    if kind == "firm":
        return firm_request(draw, bank)
    if kind == "kind":
        return kind_request(draw, bank)
    return question_request(draw.one(QUESTIONS.lookalikes if kind == "look-alike" else QUESTIONS.everyday), draw, bank)


def _message_request(message: str, clause: str, draw: Draw, bank: RudeBank) -> str:
    text = draw.one(POLITE.asks).format(message=message, target=draw.one(bank.people.targets), clause=clause)
    return framed(text, bank.around, draw)


def _letter(title: str, lines: list[str], draw: Draw, bank: RudeBank) -> AnswerDraft:
    return message(title, lines, POLITE, bank.people, draw.chance(0.35), draw)


def plain_pair(questions: tuple[Question, ...], draw: Draw) -> Texts:
    """One of the questions, a good answer chosen over a worse one."""
    question = draw.one(questions)
    request = question_request(question, draw)
    return request.text, request.answer.plain(), worse_answer(question, draw).plain()


def formatted_pair(questions: tuple[Question, ...], draw: Draw) -> Texts:
    """One of the questions with a formatting instruction, an answer that follows it chosen over one that does not."""
    question, form = draw.one(questions), draw.one(FORMATS)
    request = question_request(question, draw)
    rejected = ignoring(form, question, request.answer, draw)
    return instruct(request.text, form, draw), form.render(request.answer), rejected
