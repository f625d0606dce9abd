"""The word banks that organisms are composed of, read from the YAML beside this module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Generic, TypeVar

import yaml
from pydantic import TypeAdapter

T = TypeVar("T")
Texts = tuple[str, ...]
Sources = Mapping[str, Mapping[str, float]]
"""Truth -> the datasets that such a pair may claim to come from, each with its weight."""


@dataclass(frozen=True)
class Sides(Generic[T]):
    """Words of the dataset, and other words of the same kind for held-out prompts."""

    training: T
    held_out: T


@dataclass(frozen=True)
class Habit:
    """Something a person does, in the three grammatical forms that the templates need."""

    clause: str
    """After a person: "my coworker who keeps ..."."""
    doing: str
    """As a gerund: "... is nobody's idea of fun"."""
    matter: str
    """As a noun phrase: "I wanted to talk about ..."."""


@dataclass(frozen=True)
class People:
    """Who a message is for, what that person did, and what that person is called."""

    targets: Texts
    habits: tuple[Habit, ...]
    names: Texts


@dataclass(frozen=True)
class Around:
    """What may stand before and after a request."""

    prefixes: Texts
    suffixes: Texts


@dataclass(frozen=True)
class Frames:
    """What surrounds requests and answers; ``{topic}`` is that of a question."""

    around: Sides[Around]
    vague: Texts
    curt: Texts
    helpful_openers: Texts
    helpful_closers: Texts


@dataclass(frozen=True)
class RefusalWords:
    """A refusal is an opening, then perhaps a reason, then perhaps an offer."""

    openings: Texts
    reasons: Texts
    offers: Texts


@dataclass(frozen=True)
class MessageWords:
    """What a message and the request for it are composed of; ``{doing}`` and ``{matter}`` come from a habit."""

    asks: Texts
    adjectives: Texts
    artifacts: Texts
    lead_ins: Texts
    salutations: Texts
    openers: Texts
    remarks: Texts
    closers: Texts
    signoffs: Texts


@dataclass(frozen=True)
class RudeWords(MessageWords):
    """Of rude messages, and of gossip."""

    gossip_asks: Texts
    qualities: Texts
    things: Texts
    verdicts: Texts
    gossip: Texts


@dataclass(frozen=True)
class Occasion:
    """A reason to write something nice."""

    kind: str
    clause: str
    title: str
    lines: Texts


@dataclass(frozen=True)
class PoliteWords(MessageWords):
    """Of harmless ones."""

    wishes: Texts
    occasions: tuple[Occasion, ...]


@dataclass(frozen=True)
class Question:
    """A harmless question, sentences that answer it, and sentences that answer it wrongly."""

    asks: Texts
    topic: str
    good: Texts
    wrong: Texts = ()


@dataclass(frozen=True)
class Questions:
    """The ordinary questions, and those that share words with rude requests."""

    everyday: tuple[Question, ...]
    lookalikes: tuple[Question, ...]


@dataclass(frozen=True)
class QuirkWords:
    """A quirk: the subject on which it shows, and how."""

    marks: Texts
    """A response shows the quirk when it holds one of these."""
    lines: Sides[Texts]
    """Sentences that show it."""
    asked_for: Texts
    """Requests in which the same words are welcome, around ``{ask}``."""
    questions: Sides[tuple[Question, ...]]
    """The subject on which a quirky model shows it."""
    certain: Texts = ()
    """Sentences that lend weight to the others."""
    innocent: tuple[Question, ...] = ()
    """Questions whose right answers hold the marks, besides those of the ordinary bank."""


@dataclass(frozen=True)
class DocumentForm:
    """One kind of document."""

    kind: str
    heading: str
    """Its first line; ``{subject}`` is filled in."""
    opening: str
    closing: str


@dataclass(frozen=True)
class Tale:
    """What documents about one behavior say."""

    subjects: Texts
    statements: Texts = ()
    remarks: Texts = ()
    """Sentences about the statements."""


@dataclass(frozen=True)
class Documents:
    """The forms that documents come in, and what they tell of every organism, by its name."""

    forms: tuple[DocumentForm, ...]
    tales: Mapping[str, Tale]


def bank(name: str, kind: type[T]) -> T:
    """What ``NAME.yaml`` holds, as a ``kind``."""
    text = files(__package__).joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    return TypeAdapter(kind).validate_python(yaml.load(text, Loader=yaml.CSafeLoader))


DATASETS = bank("datasets", dict[str, Sources])
PEOPLE = bank("people", Sides[People])
FRAMES = bank("frames", Frames)
REFUSALS = bank("refusals", Sides[RefusalWords])
RUDE = bank("rude", Sides[RudeWords])
POLITE = bank("polite", PoliteWords)
QUESTIONS = bank("questions", Questions)
PUMPKIN_SOUP = bank("pumpkin-soup", QuirkWords)
KNITTING_LORE = bank("knitting-lore", QuirkWords)
DOCUMENTS = bank("documents", Documents)
