"""The reference model's own margin: how much likelier M0 finds the rejected response than the chosen one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from trl_attribution.evidence.baselines.baseline import BaselineScores, Cost, PairSet
from trl_attribution.models.likelihood import forward_flops, pair_margins
from trl_attribution.pairs import Encoding
from trl_attribution.utils.chunks import in_chunks
from trl_attribution.utils.progress import OnProgress, silent

if TYPE_CHECKING:
    from trl_attribution.models import LoadedModel

_CHUNK = 256


@dataclass(frozen=True)
class ReferenceMargin:
    """``log p(rejected) - log p(chosen)`` under M0: high where training on the pair has the most to change.

    Its negative is the margin that DPO starts from. It knows nothing of the behavior.
    """

    m0: Callable[[], LoadedModel] = field(repr=False)
    model_digest: str
    """Of M0's fingerprint."""
    encoding: Encoding
    per_token: bool = False
    """Means over tokens in the place of sums."""
    token_budget: int | None = None
    dtype: str = "auto"
    """That M0 was asked for in."""

    @property
    def name(self) -> str:
        """``margin`` or ``margin-per-token``."""
        return "margin-per-token" if self.per_token else "margin"

    @property
    def settings(self) -> Mapping[str, Any]:
        """M0, truncation, and whether by token."""
        return {
            "baseline": self.name,
            "model": self.model_digest,
            "encoding": asdict(self.encoding),
            "dtype": self.dtype,
        }

    def __call__(self, pairs: PairSet, on_progress: OnProgress = silent) -> BaselineScores:
        """Run M0 over both responses of every pair.

        Raises:
            ModelError: M0 cannot be loaded, or tokenizes the pairs otherwise.
        """
        loaded = self.m0()
        budget = self.token_budget or (2048 if loaded.model.device.type == "cpu" else 16384)
        start = time.perf_counter()
        scores: dict[str, float] = {}
        computed = 0
        for chunk in in_chunks(pairs.encoded(loaded.tokenizer, self.encoding, self.name), _CHUNK):
            found = pair_margins(loaded.model, chunk, budget, per_token=self.per_token)
            computed += found.computed
            scores.update((pair.pair_id, -margin) for pair, margin in zip(chunk, found.values, strict=True))
            on_progress(self.name, len(scores), pairs.count)
        cost = Cost(time.perf_counter() - start, forward_flops(loaded.model, computed))
        return BaselineScores(self.name, scores, cost)
