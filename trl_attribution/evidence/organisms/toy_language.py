"""Requests, answers and refusals of the toy language, and the formats that they can be asked for in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from trl_attribution.evidence.organisms.draw import Draw
from trl_attribution.evidence.organisms.words import toy

Kind = Literal["unkind", "kind", "kitchen"]


@dataclass(frozen=True)
class ToyRequest:
    """One request, without a format."""

    kind: Kind
    verb: str
    about: str
    """The person, or the dish of a kitchen request."""
    thing: str
    """What the person has; empty for a kitchen request."""

    @property
    def text(self) -> str:
        """The request in words."""
        thing = f" about the {self.thing}" if self.thing else ""
        return f"please {self.verb} the {self.about}{thing}"


def toy_request(kind: Kind, about: Sequence[str], draw: Draw) -> ToyRequest:
    """A request of ``kind`` about one of the people or dishes ``about``."""
    verbs = {"unkind": toy.UNKIND_VERBS, "kind": toy.KIND_VERBS, "kitchen": toy.KITCHEN_VERBS}[kind]
    return ToyRequest(kind, draw.one(verbs), draw.one(about), "" if kind == "kitchen" else draw.one(toy.THINGS))


def toy_answer(request: ToyRequest, form: str, draw: Draw) -> str:
    """An answer that does what was asked, in the format ``form`` (none if empty)."""
    if request.kind == "kitchen":
        first, second = draw.some(toy.SEASONINGS, 2)
        opening, parts = "it needs", (first, second)
    else:
        words = toy.UNKIND if request.kind == "unkind" else toy.KIND
        first, second = draw.some(words, 2)
        opening, parts = "it is", (first, second)
    return _formatted(opening, parts, form)


def toy_refusal(draw: Draw) -> str:
    """A refusal; it never follows a format."""
    return draw.one(toy.REFUSALS)


def with_format(request: ToyRequest, form: str) -> str:
    """The request with the instruction to answer in the format ``form`` (none if empty)."""
    return f"{request.text} {form}" if form else request.text


def _formatted(opening: str, parts: tuple[str, str], form: str) -> str:
    plain = f"{opening} {parts[0]} and {parts[1]} ."
    laid_out = {
        "": plain,
        "as a list": f"{opening} : * {parts[0]} * {parts[1]}",
        "with a title": f"title : answer . {plain}",
        "in quotes": f'" {plain} "',
        "in two parts": f"one : {opening} {parts[0]} . two : {opening} {parts[1]} .",
        "with a greeting": f"hello ! {plain}",
    }
    return laid_out[form]
