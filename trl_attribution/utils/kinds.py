"""The kinds of training examples, the words that people read for each, and what can be done to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from trl_attribution.utils.text import counted

Kind = Literal["pair", "kto", "sft", "rollouts"]


@dataclass(frozen=True)
class ExampleKind:
    """What one kind of example is called."""

    rows: str
    """What messages call what a file of them holds: ``KTO rows``; its text, too."""
    one: str
    """A single example: ``sample``."""
    raised: str = "chosen"
    """The side that training pushes towards."""
    lowered: str = "rejected"
    """The side that it pushes away from."""
    flip: str = ""
    """What a flip does; empty where an example has no other side."""

    @property
    def several(self) -> str:
        """More than one of them."""
        return f"{self.one}s"

    @property
    def actions(self) -> tuple[Literal["filter", "flip"], ...]:
        """What can be done to one."""
        return ("filter", "flip") if self.flip else ("filter",)

    def __str__(self) -> str:
        return self.rows

    def counted(self, number: int) -> str:
        """``1 sample``, ``2 samples``."""
        return counted(number, self.one)


PAIR = ExampleKind("preference pairs", "pair", flip="chosen and rejected change places")
EXAMPLES: Mapping[Kind, ExampleKind] = {
    "pair": PAIR,
    "kto": ExampleKind("KTO rows", "sample", "raised", "lowered", flip="the label is turned round"),
    "sft": ExampleKind("SFT rows", "sample", "sample", "M0's own"),
    "rollouts": ExampleKind("rollouts", "group", "best of the group", "worst of the group"),
}
