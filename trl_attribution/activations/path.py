"""Which way to compute: the fastest whose results agree with running every sequence by itself."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from trl_attribution.activations.attention import UnsupportedAttentionError
from trl_attribution.activations.config import Path
from trl_attribution.activations.faults import MODEL_FAULTS
from trl_attribution.activations.packing import PromptGroup
from trl_attribution.activations.passes import Layout
from trl_attribution.activations.running import Runner, is_out_of_memory
from trl_attribution.errors import SettingsError

logger = logging.getLogger(__name__)

Found = TypeVar("Found")


@dataclass(frozen=True)
class Verdict:
    """What a comparison with the plain path came to."""

    agrees: bool
    how_far: str
    """Apart, in words."""


class PathChoice:
    """The path that was asked for; with ``auto`` the first of those worth trying that agrees with the plain one.

    A path that once failed is not tried again. ``settled`` ends all checks.
    """

    def __init__(self, asked: Path, runner: Runner) -> None:
        self.path: Path = asked
        self.reason = "as asked" if asked != "auto" else "no sequence seen yet"
        self.settled = asked != "auto"
        self._left: list[Layout] = ["fused", "packed"] if fuses_by_default(runner) else ["packed"]
        self._refused: list[str] = []
        self._longest_checked = 0

    @property
    def layout(self) -> Layout:
        """How to lay sequences out now."""
        return self._left[0] if self.path == "auto" else self.path

    def take_plain(self, reason: str) -> None:
        """From now on every sequence by itself, unless another path was asked for, which cannot be had.

        Raises:
            SettingsError: one was.
        """
        if self.settled and self.path != "plain":
            raise SettingsError(f"path: {self.path} cannot be taken: {reason}. Leave it out.")
        self.path, self.reason, self.settled = "plain", reason, True

    def check(
        self,
        groups: Sequence[PromptGroup],
        sample: Sequence[PromptGroup],
        compute: Callable[[Layout, Sequence[PromptGroup]], Found],
        compare: Callable[[Found, Found], Verdict],
    ) -> None:
        """Compare on ``sample``, which holds the longest of ``groups``, again whenever longer ones turn up.

        Sliding windows and chunked attention only show on sequences longer than the window, so a check on short
        rows says nothing about long ones.
        """
        longest = max(group.longest for group in groups)
        if self.settled or longest <= self._longest_checked:
            return
        self._longest_checked = longest
        plain: Found | None = None
        while self._left:
            layout = self._left[0]
            try:
                found = compute(layout, sample)
                plain = compute("plain", sample) if plain is None else plain
                verdict = compare(found, plain)
            except MODEL_FAULTS as error:
                if is_out_of_memory(error):
                    raise
                self._refused.append(f"the {layout} path fails for this model: {error}")
            else:
                if verdict.agrees:
                    accepted = f"self-check: {verdict.how_far} the plain path"
                    self.path, self.reason = layout, "; ".join((accepted, *self._refused))
                    return
                self._refused.append(f"self-check: the {layout} path is {verdict.how_far} the plain one")
            logger.warning("%s; it is not taken: the numbers are right without it, and take longer", self._refused[-1])
            self._left.pop(0)
        self.path, self.reason, self.settled = "plain", "; ".join(self._refused), True

    def leaves(self, error: UnsupportedAttentionError) -> bool:
        """Whether the path that failed amid the work may be left for the next one, to be checked first."""
        if self.settled:
            return False
        self._refused.append(f"the {self._left.pop(0)} path failed amid the work: {error}")
        logger.warning("%s", self._refused[-1])
        self._longest_checked = 0
        return True


def fuses_by_default(runner: Runner) -> bool:
    """Whether fused attention is worth a try: on CUDA, where this process decides by itself.

    On a CPU it runs unfused, and ranks that share a model would wait for one that compiles, or cannot.
    """
    return type(runner) is Runner and runner.device.type == "cuda"
