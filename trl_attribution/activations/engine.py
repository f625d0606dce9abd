"""Compute mean activations on M0: stops after the highest layer asked for, each prompt once, no LM head.

Axis letters: n pairs, R responses, L layers, D hidden size, T tokens.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedModel

from trl_attribution.activations.attention import UnsupportedAttentionError, attention_replaced
from trl_attribution.activations.blocks import DecoderBlocks, find_blocks
from trl_attribution.activations.config import ActivationConfig, Path
from trl_attribution.activations.faults import MODEL_FAULTS
from trl_attribution.activations.packing import GroupActivations, PromptGroup
from trl_attribution.activations.passes import ForwardPass, Layout, Lens
from trl_attribution.activations.path import PathChoice, Verdict
from trl_attribution.activations.running import Runner, is_out_of_memory, runner_for
from trl_attribution.activations.schedule import OnProgress, TokenBudget, run_in_batches
from trl_attribution.activations.workers import workers_for
from trl_attribution.errors import DataError, ModelError
from trl_attribution.models.limits import InputLimits, input_limits
from trl_attribution.utils.distributed import numel
from trl_attribution.utils.text import printable

if TYPE_CHECKING:
    from trl_attribution.pairs import EncodedPair

# Cosine between the packed and the plain path's centered means that the self-check asks for. The plain path is the
# yardstick; in 16-bit both carry rounding noise, so they may differ by more without either being wrong.
_AGREEMENT = {torch.float32: 0.9999, torch.float64: 0.9999, torch.bfloat16: 0.98, torch.float16: 0.99}
_CHECK_GROUPS = 4


@dataclass
class ActivationStats:
    """What was computed so far, for cost reports."""

    sequences: int = 0
    tokens_computed: int = 0
    """Tokens that went through the model."""
    tokens_in_sequences: int = 0
    """Tokens of all sequences, prompts counted once per response: what a naive pass computes."""
    seconds: float = 0.0


@dataclass(frozen=True)
class PairVectors:
    """Vectors of n pairs, float32 on the CPU."""

    pair: Tensor
    """[n, L, D], mean activation of the chosen minus that of the rejected response."""
    context: Tensor
    """[n, L, D], residual stream at the last prompt token; zeros where a pair has no prompt token."""


def _silent(done: int, total: int) -> None:
    """The progress of a caller who asked for none."""


class ActivationEngine:
    """Mean activations of one model at fixed layers; through a ``lens``, means of what that makes of each token.

    Example:
        >>> engine = ActivationEngine(model, ActivationConfig(layers=(20,)))  # doctest: +SKIP
        >>> engine.pair_vectors(encoded_pairs).pair.shape  # doctest: +SKIP
        torch.Size([n, 1, 576])

    Raises:
        ModelError: the decoder blocks are not found, or a layer is out of range.
    """

    def __init__(self, model: PreTrainedModel, config: ActivationConfig, lens: Lens | None = None) -> None:
        self.model = model
        self.config = config
        self.lens = lens
        self.blocks: DecoderBlocks = find_blocks(model, config.blocks_path)
        self.blocks.check_layers(config.layers)
        self.layers = config.layers
        self.hidden_size: int = model.config.get_text_config().hidden_size
        self.width = self.hidden_size if lens is None else lens.width
        self.runner: Runner = runner_for(model, self.blocks, max(config.layers))
        self.limits: InputLimits = input_limits(model)
        self.device: torch.device = self.runner.device
        self.dtype: torch.dtype = next(model.parameters()).dtype
        self.budget = TokenBudget(config.token_budget or (2048 if self.device.type == "cpu" else 16384))
        self.stats = ActivationStats()
        self._choice = PathChoice(config.path, self.runner)

    @property
    def path(self) -> Path:
        """The path taken, ``auto`` as long as nothing was computed."""
        return self._choice.path

    @property
    def path_reason(self) -> str:
        """Why it is taken."""
        return self._choice.reason

    def pair_vectors(self, pairs: Sequence[EncodedPair], on_progress: OnProgress = _silent) -> PairVectors:
        """Pair and context vectors of ``pairs``, in their order: weighted sums over each one's responses.

        Pairs with the same prompt share its tokens, and equal responses to it are computed once. Where the responses
        of a pair have different prompts, as truncation may leave them, the context is the mean of these, by the
        responses' weights.
        """
        if any(pair.collate is not None for pair in pairs):
            return self._seen_vectors(pairs, on_progress)
        groups, places = _group(pairs)
        found = self.activations(groups, on_progress)
        pair = torch.empty(len(pairs), len(self.layers), self.width)
        context = torch.empty_like(pair)
        for index, sides in enumerate(places):
            weights = pairs[index].weights
            pair[index] = weights[0] * found[sides[0].group].responses[sides[0].response]
            for side, weight in zip(sides[1:], weights[1:], strict=True):
                pair[index].add_(found[side.group].responses[side.response], alpha=weight)
            shares = _shares(sides, weights)
            context[index] = sum(share * found[group].context for group, share in shares.items())
        return PairVectors(pair, context)

    def _seen_vectors(self, pairs: Sequence[EncodedPair], on_progress: OnProgress) -> PairVectors:
        """Of pairs with images: one at a time, as TRL's collator lays it out, for pixels have no place in a stream."""
        self._choice.take_plain("pairs with images are run one at a time")
        if type(self.runner) is not Runner:
            raise ModelError("pairs with images cannot run through a model in pieces; let each rank load all of it")
        start = time.perf_counter()
        found: list[GroupActivations] = []
        forward = ForwardPass(self.runner, self.blocks, self.layers, self.lens)
        for done, pair in enumerate(pairs, start=1):
            found.append(self._seen(forward, pair))
            on_progress(done, len(pairs))
        self._refuse_broken(found)
        self.stats.seconds += time.perf_counter() - start
        self.stats.sequences += 2 * len(pairs)
        return PairVectors(
            torch.stack([one.responses[0] - one.responses[1] for one in found]),
            torch.stack([one.context for one in found]),
        )

    def _seen(self, forward: ForwardPass, pair: EncodedPair) -> GroupActivations:
        assert pair.collate is not None, "pairs of one dataset have images all, or none"
        lengths = [(*side.prompt_ids, *side.response_ids) for side in pair.sides]
        self.limits.check(max(map(max, lengths)), max(map(len, lengths)))
        try:
            batch = pair.collate()
            with self.runner.session():
                found = forward.seen(batch)
        except DataError as error:
            raise DataError(f"{printable(pair.location)}: column {error}") from error
        except MODEL_FAULTS as error:
            fails = f"the model fails ({type(error).__name__}: {printable(error, 300)})"
            what = "out of memory" if is_out_of_memory(error) else fails
            raise ModelError(
                f"{printable(pair.location)}: {what} on this pair with its images. Leave it out."
            ) from error
        self.stats.tokens_computed += found.tokens
        self.stats.tokens_in_sequences += sum(map(len, lengths))
        return found.groups[0]

    def activations(self, groups: Sequence[PromptGroup], on_progress: OnProgress = _silent) -> list[GroupActivations]:
        """Context and mean response activations of each group, in their order.

        Raises:
            ValueError: a response has no tokens.
            ModelError: the model cannot run or gives no finite numbers, has no place for a token, or one sequence alone
                does not fit into memory.
        """
        if any(not response for group in groups for response in group.responses):
            raise ValueError("activations: a response without tokens has no mean")
        if not groups:
            return []
        self.limits.check(max(map(_highest_token, groups)), max(group.longest for group in groups))
        start = time.perf_counter()
        with self.runner.session():
            self._choose_path(groups)
            found = self._computed(groups, on_progress)
        self._refuse_broken(found)
        self.stats.seconds += time.perf_counter() - start
        self.stats.sequences += sum(len(group.responses) for group in groups)
        self.stats.tokens_in_sequences += sum(
            len(group.prompt_ids) + len(response) for group in groups for response in group.responses
        )
        return found

    @contextmanager
    def in_step(self, sample: Sequence[EncodedPair] = ()) -> Iterator[None]:
        """Around computations that ranks do on their own: where they share one model, keep them in step to the end.

        Such ranks decide on the path once, together, on the longest of all their samples. Outside of this block they
        have to ask for the same activations at the same time.

        Raises:
            RankError: another rank failed.
            OutOfStepError: this rank failed inside the model, and cannot ask the others.
        """
        with self.runner.in_step():
            shared = self.runner.shared(_group(sample)[0])
            if shared:
                with self.runner.session(), self.runner.alike():
                    self._choose_path(shared)
                self._choice.settled = True
            yield

    def parameters_per_token(self) -> int:
        """Parameters of the blocks that run: about half the FLOPs a token costs, attention scores left out."""
        last = max(self.layers)
        return sum(numel(parameter) for block in self.blocks.blocks[:last] for parameter in block.parameters())

    def _computed(self, groups: Sequence[PromptGroup], on_progress: OnProgress) -> list[GroupActivations]:
        try:
            return self._in_layout(self._choice.layout, groups, on_progress, self.lens)
        except UnsupportedAttentionError as error:
            if self._choice.leaves(error):
                self._choose_path(groups)
                return self._computed(groups, on_progress)
            raise ModelError(
                f"path: {self.path} cannot run this model ({error}); use path 'auto' or 'plain'"
            ) from error

    def _refuse_broken(self, found: Sequence[GroupActivations]) -> None:
        rows = torch.stack([torch.cat([group.context[None], group.responses]).sum(0) for group in found])
        broken = [self.layers[place] for place in (~rows.isfinite().all(-1).all(0)).nonzero().flatten().tolist()]
        if broken:
            raise ModelError(
                f"layers {broken} of {type(self.model).__name__} are not finite numbers (in {self.dtype}): weights are "
                "broken, or the dtype is too narrow for them. Try --dtype float32."
            )

    def _choose_path(self, groups: Sequence[PromptGroup]) -> None:
        by_length = sorted(groups, key=lambda group: -group.longest)
        sample = [by_length[0], *groups[: _CHECK_GROUPS - 1]]
        self._choice.check(groups, sample, self._in_layout, self._compare)

    def _compare(self, found: Sequence[GroupActivations], plain: Sequence[GroupActivations]) -> Verdict:
        agreement, needed = _agreement(found, plain), _AGREEMENT.get(self.dtype, 0.9999)
        if agreement >= needed:
            return Verdict(agrees=True, how_far=f"cosine {agreement:.6f} to")
        return Verdict(agrees=False, how_far=f"cosine {agreement:.4f}, below {needed}, to")

    def _in_layout(
        self,
        layout: Layout,
        groups: Sequence[PromptGroup],
        on_progress: OnProgress = _silent,
        lens: Lens | None = None,  # paths are compared without it: a latent that is cut off tells nothing of how far
    ) -> list[GroupActivations]:
        with nullcontext() if layout == "plain" else attention_replaced(self.model):
            return self._in_batches(layout, groups, on_progress, lens)

    def _in_batches(
        self, layout: Layout, groups: Sequence[PromptGroup], on_progress: OnProgress, lens: Lens | None
    ) -> list[GroupActivations]:
        forward = ForwardPass(self.runner, self.blocks, self.layers, lens)
        tokens = sum(group.tokens for group in groups)
        with workers_for(forward, layout, tokens, self.config.workers) as workers:
            found = run_in_batches(groups, self.budget, workers, padded=layout == "plain", on_progress=on_progress)
        self.stats.tokens_computed += found.tokens
        return found.groups


def _highest_token(group: PromptGroup) -> int:
    return max(max(ids, default=0) for ids in (group.prompt_ids, *group.responses))


@dataclass(frozen=True)
class _Place:
    group: int
    response: int


def _shares(sides: Sequence[_Place], weights: Sequence[float]) -> dict[int, float]:
    """How much each prompt counts among a pair's responses."""
    found = dict.fromkeys((side.group for side in sides), 0.0)
    if len(found) == 1:
        return dict.fromkeys(found, 1.0)
    for side, weight in zip(sides, weights, strict=True):
        found[side.group] += abs(weight)
    total = sum(found.values())
    return {group: share / total for group, share in found.items()}


def _group(pairs: Sequence[EncodedPair]) -> tuple[list[PromptGroup], list[list[_Place]]]:
    """Prompts and responses of ``pairs``, each once, and where each pair's responses are."""
    index: dict[tuple[int, ...], int] = {}
    responses: list[dict[tuple[int, ...], int]] = []

    def place(prompt_ids: Sequence[int], response_ids: Sequence[int]) -> _Place:
        group = index.setdefault(tuple(prompt_ids), len(index))
        if group == len(responses):
            responses.append({})
        return _Place(group, responses[group].setdefault(tuple(response_ids), len(responses[group])))

    places = [[place(side.prompt_ids, side.response_ids) for side in pair.sides] for pair in pairs]
    groups = [PromptGroup(prompt, list(found)) for prompt, found in zip(index, responses, strict=True)]
    return groups, places


def _agreement(left: Sequence[GroupActivations], right: Sequence[GroupActivations]) -> float:
    """Lowest cosine, over layers, between two paths' means after centering; a shared offset must not hide errors."""
    rows_left, rows_right = (
        torch.cat([torch.cat([group.context[None], group.responses]) for group in side]).double()
        for side in (left, right)
    )
    center = rows_right.mean(0, keepdim=True)
    cosines = torch.nn.functional.cosine_similarity(rows_left - center, rows_right - center, dim=-1)
    # Rows that equal the center have no direction to compare.
    norms = (rows_right - center).norm(dim=-1)
    judged = cosines[norms > 1e-6 * rows_right.norm(dim=-1).clamp_min(1e-12)]
    return float(judged.min()) if judged.numel() else 1.0
