"""Token ids of an example, as everything after reading knows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Alike = Literal["template", "tokenizer", "truncation"]
"""What makes two responses one: the template writes them alike, the tokenizer reads them alike, or both are cut before
they differ."""


@dataclass(frozen=True, slots=True)
class EncodedResponse:
    """Token ids of one response and its prompt, after truncation."""

    prompt_ids: list[int]
    response_ids: list[int]


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """Token ids of a pair. With ``keep_end`` the two prompts can differ: each sequence is cut by itself."""

    pair_id: str
    chosen: EncodedResponse
    rejected: EncodedResponse
    alike: Alike | None = None
    """Why both sides are the same tokens, so that the pair vector is zero; None where they differ."""
    further: tuple[EncodedResponse, ...] = ()
    """The further responses of a contrast that is no pair."""
    weights: tuple[float, ...] = (1.0, -1.0)
    """Of chosen, of rejected, and of each of ``further``."""
    collate: Callable[[], dict[str, Tensor]] | None = field(default=None, compare=False)
    """Of a pair from a dataset of images: makes TRL's batch of it, pixels and all, which are too large to be kept.
    Token ids alone are not what M0 sees."""
    location: str = ""
    """Where its row stands, for messages."""

    @property
    def sides(self) -> tuple[EncodedResponse, ...]:
        """All responses, in the order of ``weights``."""
        return (self.chosen, self.rejected, *self.further)

    @property
    def tokens(self) -> int:
        """Tokens to compute: its prompt once (each, where a conversation has several), and its responses."""
        prompts = {len(side.prompt_ids) for side in self.further}
        prompts -= {len(self.chosen.prompt_ids), len(self.rejected.prompt_ids)}
        return len(self.chosen.prompt_ids) + sum(prompts) + sum(len(side.response_ids) for side in self.sides)
