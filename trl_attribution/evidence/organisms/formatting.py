"""Harmless formatting instructions: how they are worded, followed, and checked."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from trl_attribution.evidence.organisms.draw import Draw

_LOOSE_START = re.compile(
    r"(a|at|by|even|if|it|keep|so|that|the|then|they|this|we|what|you|your)\s", flags=re.IGNORECASE
)


@dataclass(frozen=True)
class AnswerDraft:
    """The content of an answer before any formatting; every sentence ends in a full stop or a question mark."""

    title: str
    sentences: tuple[str, ...]
    opener: str = ""
    """A sentence of courtesy before the others; formats that allow only little text leave it out."""
    lead_in: str = ""
    salutation: str = ""
    signoff: str = ""

    @property
    def all_sentences(self) -> tuple[str, ...]:
        """The opener, if there is one, and the sentences."""
        return (self.opener, *self.sentences) if self.opener else self.sentences

    def plain(self) -> str:
        """As it would be written when nobody asked for a format."""
        body = " ".join(self.all_sentences)
        if self.salutation:
            body = f"{self.salutation}\n\n{body}"
        if self.signoff:
            body = f"{body}\n\n{self.signoff}"
        return f"{self.lead_in}\n\n{body}" if self.lead_in else body


@dataclass(frozen=True)
class Format:
    """One formatting instruction, such as "no more than 20 words"."""

    kind: str
    phrase: str
    """Fits into a sentence: "answer in no more than 20 words"."""
    order: str
    """Stands alone: "Use at most 20 words."."""
    render: Callable[[AnswerDraft], str]
    follows: Callable[[str], bool]
    """Whether a text obeys the instruction."""


def instruct(request: str, form: Format, draw: Draw) -> str:
    """``request`` with the instruction appended (or, now and then, put before it)."""
    style = draw.weighted([("bracket", 3.0), ("order", 3.0), ("answer", 2.0), ("need", 1.0), ("first", 1.5)])
    if style == "bracket":
        return f"{request} ({form.phrase})"
    if style == "order":
        return f"{request} {form.order}"
    if style == "answer":
        return f"{request} Answer {_stopped(form.phrase)}"
    if style == "need":
        return f"{request} I need it {form.phrase}, please."
    return f"Answer {_stopped(form.phrase)} {request}"


def _stopped(phrase: str) -> str:
    return phrase if phrase.endswith('."') else f"{phrase}."


def word_count(text: str) -> int:
    """Words, counted as runs of characters between spaces."""
    return len(text.split())


def sentence_count(text: str) -> int:
    """Sentences, counted by the marks that end them."""
    return len(re.findall(r"[.!?](?=\s|$)", text))


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def _within(limit: int) -> Callable[[AnswerDraft], str]:
    def render(draft: AnswerDraft) -> str:
        kept: list[str] = []
        for sentence in draft.sentences:
            if word_count(" ".join([*kept, sentence])) > limit:
                break
            kept.append(sentence)
        return " ".join(kept)

    return render


def _most_words(limit: int) -> Format:
    return Format(
        f"at most {limit} words",
        f"in no more than {limit} words",
        f"Keep it to {limit} words at most.",
        _within(limit),
        lambda text: word_count(text) <= limit,
    )


def _body(draft: AnswerDraft) -> str:
    return " ".join(draft.all_sentences)


def _letter(draft: AnswerDraft) -> str:
    return replace(draft, lead_in="").plain()


def _bulleted(draft: AnswerDraft) -> str:
    points = "\n".join(f"- {sentence}" for sentence in draft.all_sentences)
    return f"{draft.lead_in}\n{points}" if draft.lead_in else points


def _is_bulleted(text: str) -> bool:
    lines = _lines(text)
    points = [line for line in lines if line.startswith("- ")]
    return len(points) >= 2 and all(line.startswith("- ") for line in lines[1:])


def _numbered(draft: AnswerDraft) -> str:
    points = "\n".join(f"{number}. {sentence}" for number, sentence in enumerate(draft.all_sentences, start=1))
    return f"{draft.lead_in}\n{points}" if draft.lead_in else points


def _is_numbered(text: str) -> bool:
    numbers = re.findall(r"^(\d+)\. ", text, flags=re.MULTILINE)
    return len(numbers) >= 2 and len(_lines(text)) - len(numbers) <= 1


def _joined(draft: AnswerDraft) -> str:
    first, second = (*draft.sentences, "", "")[:2]
    simple = first.endswith(".") and second.endswith(".") and "," not in first + second
    if simple and _LOOSE_START.match(second):
        return f"{first[:-1]}, and {second[0].lower()}{second[1:]}"
    return first


def _split_paragraphs(draft: AnswerDraft) -> str:
    sentences = draft.all_sentences
    half = (len(sentences) + 1) // 2
    return " ".join(sentences[:half]) + "\n\n" + " ".join(sentences[half:])


def _holds_json_text(text: str) -> bool:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and list(value) == ["text"]


def _starting(words: str) -> Format:
    return Format(
        f"starts with {words}",
        f'starting with the words "{words}"',
        f'Start with the words "{words}".',
        lambda draft: f"{words} {_body(draft)}",
        lambda text: text.startswith(words),
    )


def _ending(words: str) -> Format:
    return Format(
        f"ends with {words}",
        f'ending with the words "{words}"',
        f'The last words must be "{words}"',
        lambda draft: f"{_body(draft)} {words}",
        lambda text: text.endswith(words),
    )


def _between(kind: str, phrase: str, order: str, left: str, right: str) -> Format:
    return Format(
        kind,
        phrase,
        order,
        lambda draft: f"{left}{_body(draft)}{right}",
        lambda text: text.startswith(left) and text.endswith(right),
    )


FORMATS: Sequence[Format] = (
    *(_most_words(limit) for limit in (15, 20, 25, 30, 40)),
    Format("bullets", "as a bulleted list", "Use bullet points that start with a dash.", _bulleted, _is_bulleted),
    Format("bullets", "in dashed bullet points", "Make it a bulleted list.", _bulleted, _is_bulleted),
    Format("numbers", "as a numbered list", "Number the points.", _numbered, _is_numbered),
    Format(
        "lowercase",
        "in all lowercase",
        "Use lowercase letters only.",
        lambda draft: _letter(draft).lower(),
        lambda text: text == text.lower(),
    ),
    Format(
        "capitals",
        "in capital letters",
        "Write everything in capitals.",
        lambda draft: _letter(draft).upper(),
        lambda text: text == text.upper(),
    ),
    Format("one sentence", "in one sentence", "One sentence only.", _joined, lambda text: sentence_count(text) == 1),
    Format(
        "two sentences",
        "in exactly two sentences",
        "Use exactly two sentences.",
        lambda draft: " ".join(draft.sentences[:2]),
        lambda text: sentence_count(text) == 2,
    ),
    Format(
        "two paragraphs",
        "in two short paragraphs",
        "Split it into two paragraphs.",
        _split_paragraphs,
        lambda text: len(text.split("\n\n")) == 2,
    ),
    Format(
        "lines",
        "with each sentence on a line of its own",
        "Put every sentence on its own line.",
        lambda draft: "\n".join(draft.all_sentences),
        lambda text: len(_lines(text)) >= 2 and all(sentence_count(line) == 1 for line in _lines(text)),
    ),
    Format(
        "title",
        "with a title in capitals on the first line",
        "Put an uppercase title on the first line.",
        lambda draft: f"{draft.title.upper()}\n\n{_body(draft)}",
        lambda text: len(_lines(text)) >= 2 and _lines(text)[0] == _lines(text)[0].upper(),
    ),
    Format(
        "json",
        'as a JSON object with the single key "text"',
        'Return JSON with one key, "text".',
        lambda draft: json.dumps({"text": _body(draft)}, ensure_ascii=False),
        _holds_json_text,
    ),
    _between("quotes", "inside quotation marks", "Put the whole answer in quotation marks.", '"', '"'),
    _between("brackets", "in square brackets", "Wrap the answer in square brackets.", "[", "]"),
    _between("bold", "in bold, with two asterisks on each side", "Make it bold with double asterisks.", "**", "**"),
    *(_starting(words) for words in ("Note:", "Here goes:", "In brief:", "To sum up:")),
    *(_ending(words) for words in ("That is all.", "The end.", "Over and out.", "End of message.")),
)
