"""The kinds of scores by name, and what may be done by them; nothing heavy is needed to check one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from trl_attribution.utils.kinds import ExampleKind

Kind = Literal["contextual", "response", "controlled", "one-sided"]
AskedKind = Literal["auto", Kind]
Action = Literal["filter", "flip"]


def actions_by(kinds: Iterable[AskedKind], examples: ExampleKind) -> tuple[Action, ...]:
    """What can be done to ``examples`` by scores of these ``kinds``."""
    return ("filter",) if "one-sided" in kinds else examples.actions


def why_no_flip(examples: ExampleKind) -> str:
    """Why a flip is not among :func:`actions_by`, for messages."""
    if not examples.flip:
        return f"{examples} cannot be flipped, they have no other side"
    return "by one-sided scores nothing is flipped: what leans a little away from the behavior may score above 0"
