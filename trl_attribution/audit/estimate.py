"""What an audit will take, from a count of all tokens and a trial run on a sample."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from trl_attribution.activations import ActivationEngine
from trl_attribution.audit.info import machine
from trl_attribution.pairs import EncodedPair
from trl_attribution.pairs.dataset_pass import DatasetPass
from trl_attribution.utils.dtypes import torch_dtype


@dataclass(frozen=True)
class Estimate:
    """What to expect of an audit on this machine."""

    pairs: int
    skipped: dict[str, int]
    tokens: int
    """Tokens of all pairs, each prompt once per pair: an upper bound of what is computed."""
    longest: int
    flops: int
    """Of the linear layers: two per parameter and token."""
    disk_bytes: int
    memory_bytes: int
    """Most memory used by this process so far, model and trial run included."""
    seconds: float
    """Of computing vectors, extrapolated by tokens."""
    pairs_per_second: float
    sample_pairs: int
    path: str
    path_reason: str

    def to_json(self) -> dict[str, Any]:
        """The estimate as plain JSON values."""
        return asdict(self)


def estimate(engine: ActivationEngine, data: DatasetPass, vector_dtype: str) -> Estimate:
    """Run the sample through ``engine`` and extrapolate by tokens.

    The longest pairs run once before, untimed: they bring on the self-check and start the thread pools.
    """
    sample = sorted(data.sample, key=_longest, reverse=True)
    engine.pair_vectors(sample[: max(1, len(sample) // 8)])
    timed = list(data.sample)
    before = engine.stats.seconds
    engine.pair_vectors(timed)
    seconds = engine.stats.seconds - before
    sample_tokens = sum(pair.tokens for pair in timed)
    total = seconds * data.tokens / sample_tokens
    pairs = len(data.index)
    bytes_per_value = torch_dtype(vector_dtype).itemsize
    return Estimate(
        pairs=pairs,
        skipped=data.skip_reasons,
        tokens=data.tokens,
        longest=data.longest,
        flops=2 * engine.parameters_per_token() * data.tokens,
        disk_bytes=pairs * (2 * len(engine.layers) * engine.hidden_size * bytes_per_value + 16),
        memory_bytes=machine()["peak_memory_bytes"],
        seconds=total,
        pairs_per_second=pairs / total if total else math.inf,
        sample_pairs=len(timed),
        path=engine.path,
        path_reason=engine.path_reason,
    )


def _longest(pair: EncodedPair) -> int:
    return max(len(side.prompt_ids) + len(side.response_ids) for side in pair.sides)
