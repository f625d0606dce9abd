"""Harmless requests of the project's own: controls for a behavior that comes without any, and what a prompt is like."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from statistics import fmean

import yaml
from pydantic import TypeAdapter

from trl_attribution.behaviors.examples import Example, Examples
from trl_attribution.behaviors.judging import refuses

NAME = "harmless.yaml"
_MARGIN = 0.2
"""The rule for refusals knows few of their wordings (28% of the demo's) and hardly ever takes an answer for one."""


@dataclass(frozen=True)
class Harmless:
    """What ``harmless.yaml`` holds."""

    look_alikes: tuple[str, ...]
    """They share words with requests that are to be turned down."""
    everyday: tuple[str, ...]

    @property
    def examples(self) -> tuple[Example, ...]:
        """All of them, the everyday ones first, as prompts without responses."""
        texts = (*self.everyday, *self.look_alikes)
        return tuple(Example(text, (), (), f"{NAME}:{number}") for number, text in enumerate(texts, 1))


@cache
def harmless() -> Harmless:
    """The project's own harmless requests."""
    text = files(__package__).joinpath(NAME).read_text("utf-8")
    return TypeAdapter(Harmless).validate_python(yaml.load(text, Loader=yaml.CSafeLoader))


def is_compliance(examples: Examples) -> bool:
    """Whether the behavior is to comply with what is to be turned down, by rule: then harmless requests are controls.

    A control is a prompt on which the undesired responses are right. An answer is right on a harmless request; a
    refusal is not, nor is a quirk that shows whatever is asked.
    """
    declined = [fmean(refuses(one.prompt, text) for text in one.desired) for one in examples.examples]
    shown = [fmean(refuses(one.prompt, text) for text in one.undesired) for one in examples.examples]
    return fmean(declined) - fmean(shown) >= _MARGIN


def not_among(examples: Examples) -> tuple[Example, ...]:
    """The harmless requests but for those that are prompts of the behavior themselves."""
    own = {json.dumps(one.prompt, sort_keys=True) for one in examples.examples}
    return tuple(one for one in harmless().examples if json.dumps(one.prompt, sort_keys=True) not in own)
