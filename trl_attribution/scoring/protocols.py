"""What scoring asks of vectors and probes, so that any store or probe with these members can be scored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

OWN_CONTROLS = "harmless requests of the project's own"
"""What ``built["controls"]["from"]`` of a probe says of controls that nobody gave."""


class VectorBlockLike(Protocol):
    """Consecutive pairs of a view: n of them, L layers, hidden size D."""

    @property
    def start(self) -> int:
        """Position of the block's first pair in the view."""

    @property
    def pair(self) -> Tensor:
        """Pair vectors ``[n, L, D]``."""

    @property
    def context(self) -> Tensor:
        """Context vectors ``[n, L, D]``; a zero row where the pair has no prompt."""


class VectorViewLike(Protocol):
    """The vectors of N pairs in dataset order, read a block at a time."""

    @property
    def pair_ids(self) -> Sequence[str]:
        """The N pair ids, in order."""

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that vectors are kept of."""

    @property
    def hidden_size(self) -> int:
        """D."""

    def __len__(self) -> int: ...

    def blocks(self, layers: Sequence[int], size: int) -> Iterator[VectorBlockLike]:
        """All N pairs in order, at most ``size`` at a time, with the vectors of ``layers`` in that order."""


class ProbeLike(Protocol):
    """A behavior's direction at L layers and, where known, its M prompts."""

    @property
    def name(self) -> str:
        """The behavior's name."""

    @property
    def layers(self) -> tuple[int, ...]:
        """The L layers of the vectors below."""

    @property
    def layer(self) -> int:
        """The layer that flags are taken at."""

    @property
    def vector(self) -> Tensor:
        """The behavior vector ``[L, D]``, pointing towards the undesired behavior."""

    @property
    def prompt_vectors(self) -> Tensor | None:
        """The behavior vector of each prompt, ``[M, L, D]``."""

    @property
    def contexts(self) -> Tensor | None:
        """The context vector of each prompt, ``[M, L, D]``."""

    @property
    def example_vectors(self) -> Tensor | None:
        """Pair vectors of the behavior's own responses, ``[E, L, D]``."""

    @property
    def example_prompts(self) -> Tensor | None:
        """Which of the M prompts each of them is of, ``[E]``."""

    @property
    def control_contexts(self) -> Tensor | None:
        """The context vector of each control, ``[C, L, D]``."""

    @property
    def control_vectors(self) -> Tensor | None:
        """Pair vectors of responses to controls, ``[Q, L, D]``."""

    @property
    def control_prompts(self) -> Tensor | None:
        """Which of the C controls each of them is of, ``[Q]``."""

    @property
    def neutral_center(self) -> Tensor | None:
        """The mean context ``[L, D]`` of everyday prompts."""

    @property
    def reference_scores(self) -> Tensor | None:
        """Scores of R clean pairs, ``[L, R]``."""

    @property
    def reference_center(self) -> Tensor | None:
        """The center ``[L, D]`` of the contexts that contextual ``reference_scores`` were taken with."""

    @property
    def built(self) -> Mapping[str, object]:
        """How the probe was made; ``built["calibration"]["kind"]`` is the kind of ``reference_scores``."""
