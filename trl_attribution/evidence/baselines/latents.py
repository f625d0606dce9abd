"""Rank pairs in the latent space of a sparse autoencoder: cosines of mean latents in the place of mean activations."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from trl_attribution.behaviors import Examples
from trl_attribution.evidence.baselines.baseline import BaselineScores, Cost, PairSet
from trl_attribution.lenses.config import SaeConfig
from trl_attribution.pairs import EncodedPair, Encoding
from trl_attribution.utils.progress import OnProgress, silent

if TYPE_CHECKING:
    from torch import Tensor

    from trl_attribution.activations import ActivationEngine
    from trl_attribution.models import LoadedModel


@dataclass(frozen=True)
class LatentCosine:
    """The response score's formula on latents: ``cos(mean_i z_i, z_d)``.

    ``z`` is a mean over a response's tokens of each token's latents, chosen minus rejected for a pair, undesired minus
    desired (means over each) for prompt i of the behavior.
    """

    m0: Callable[[], LoadedModel] = field(repr=False)
    model_digest: str
    """Of M0's fingerprint."""
    encoding: Encoding
    behavior: Examples
    sae: SaeConfig
    token_budget: int | None = None
    dtype: str = "auto"
    """That M0 was asked for in."""

    @property
    def name(self) -> str:
        """``sae``."""
        return "sae"

    @property
    def settings(self) -> Mapping[str, Any]:
        """M0, truncation, behavior and autoencoder."""
        return {
            "baseline": "sae",
            "model": self.model_digest,
            "encoding": asdict(self.encoding),
            "behavior": self.behavior.digest,
            "sae": [self._digest, self.sae.min_explained],
            "dtype": self.dtype,
        }

    @cached_property
    def _digest(self) -> str:
        from trl_attribution.lenses import read_sae

        return read_sae(self.sae).digest

    def __call__(self, pairs: PairSet, on_progress: OnProgress = silent) -> BaselineScores:
        """Run M0 over both responses of every pair, up to the autoencoder's layer.

        Raises:
            ModelError: M0 cannot be loaded or tokenizes the pairs otherwise, or the autoencoder does not fit it.
        """
        import torch

        from trl_attribution.activations import ActivationConfig
        from trl_attribution.lenses import check_sae, latents_of_pairs
        from trl_attribution.lenses.latents import latent_engine
        from trl_attribution.lenses.texts import sequences_of

        loaded = self.m0()
        sequences = sequences_of(pairs.encoded(loaded.tokenizer, self.encoding, self.name))
        checked = check_sae(self.sae, loaded, sequences)
        engine = latent_engine(loaded, checked.sae, ActivationConfig((), token_budget=self.token_budget))
        direction = self._direction(engine, loaded)
        start, computed = time.perf_counter(), engine.stats.tokens_computed
        scores: dict[str, float] = {}
        encoded = pairs.encoded(loaded.tokenizer, self.encoding, self.name)
        for found in latents_of_pairs(engine, encoded, lambda done: on_progress(self.name, done, pairs.count)):
            cosines = torch.nn.functional.cosine_similarity(found.differences, direction[None], dim=-1)
            scores.update(zip(found.pair_ids, cosines.tolist(), strict=True))
        tokens = engine.stats.tokens_computed - computed
        flops = 2 * tokens * (engine.parameters_per_token() + checked.sae.encoder.numel())
        note = f"the autoencoder {checked.reconstruction.sentence}; the behavior's latents are not timed"
        return BaselineScores(self.name, scores, Cost(time.perf_counter() - start, flops), (note,))

    def _direction(self, engine: ActivationEngine, loaded: LoadedModel) -> Tensor:
        """``[F]``: the mean over the behavior's prompts of undesired minus desired latents."""
        from trl_attribution.lenses import mean_latents

        return mean_latents(engine, self._contrasts(loaded))

    def _contrasts(self, loaded: LoadedModel) -> Iterator[EncodedPair]:
        """Each prompt's responses as one contrast."""
        from trl_attribution.behaviors.encoding import encode_example

        for number, one in enumerate(self.behavior.examples):
            found = encode_example(one, loaded.encoder, self.encoding, "auto")
            undesired, desired = found.undesired, found.desired
            sides = (undesired[0], desired[0], *undesired[1:], *desired[1:])
            up, down = 1 / len(undesired), -1 / len(desired)
            weights = (up, down, *[up] * (len(undesired) - 1), *[down] * (len(desired) - 1))
            yield EncodedPair(str(number), sides[0], sides[1], further=sides[2:], weights=weights)
