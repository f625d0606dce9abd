"""Log probabilities of responses on M0, every distinct prefix once where a self-check agrees with plain rows.

Two responses share their prompt, and all prompts under one system message share that.

Axis letters: R responses of a group, T tokens of the stream, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from trl_attribution.activations.attention import UnsupportedAttentionError, attention_replaced, packed_layout
from trl_attribution.activations.config import Path
from trl_attribution.activations.packing import GroupActivations, PromptGroup, pack
from trl_attribution.activations.passes import BatchActivations, Layout
from trl_attribution.activations.path import PathChoice, Verdict
from trl_attribution.activations.running import Runner
from trl_attribution.activations.schedule import OnProgress, TokenBudget, run_in_batches
from trl_attribution.activations.workers import workers_for
from trl_attribution.errors import ModelError
from trl_attribution.models.likelihood import keeps_some_logits, logits_budget, padded_sums, sum_of_targets
from trl_attribution.models.limits import InputLimits, input_limits
from trl_attribution.pairs import EncodedResponse
from trl_attribution.utils.distributed import is_sharded

# How far the packed and the plain path may be apart, in nats over the root of a response's tokens: rounding adds up as
# chance does, a wrong mask with every token.
_AGREEMENT = {torch.float32: 2e-3, torch.float64: 2e-3, torch.bfloat16: 0.4, torch.float16: 0.1}
_CHECK_GROUPS = 3


class LikelihoodPass:
    """Passes through the whole of one model; what it finds of a group is the log probability of each response [R]."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner

    def on(self, model: PreTrainedModel) -> LikelihoodPass:
        """The same through a copy of the model."""
        return LikelihoodPass(Runner(model))

    def run(self, layout: Layout, groups: Sequence[PromptGroup]) -> BatchActivations:
        """Sums over each response's tokens, in nats, in the place of activations."""
        if layout == "plain":
            sums, tokens = padded_sums(self.runner.model, _single(groups))
        else:
            sums, tokens = self._packed(groups, fused=layout == "fused")
        found, start = [], 0
        for group in groups:
            stop = start + len(group.responses)
            found.append(GroupActivations(torch.empty(0), torch.tensor(sums[start:stop], dtype=torch.float64)))
            start = stop
        return BatchActivations(found, tokens)

    def _packed(self, groups: Sequence[PromptGroup], *, fused: bool) -> tuple[list[float], int]:
        model, layout = self.runner.model, pack(groups, self.runner.device, fused=fused)
        rows = [torch.from_numpy(row) for row in layout.rows]
        starts = [max(1, len(group.prompt_ids)) for group in groups for _ in group.responses]
        # A token is predicted at the place before it in its sequence.
        places = [row[start - 1 : -1] for row, start in zip(rows, starts, strict=True)]
        kept = torch.cat(places).unique()
        options: dict[str, Any] = {"use_cache": False}
        if keeps_some_logits(model):
            options["logits_to_keep"] = kept.to(self.runner.device)
        with packed_layout(layout):
            logits = model(input_ids=layout.input_ids, position_ids=layout.position_ids, **options).logits[0]
        if len(logits) != len(kept):
            logits = logits[kept.to(logits.device)]
        ids = layout.input_ids[0].cpu()
        sums = [
            sum_of_targets(logits[torch.searchsorted(kept, place).to(logits.device)], ids[row[start:]])
            for place, row, start in zip(places, rows, starts, strict=True)
        ]
        return sums, layout.input_ids.numel()


class LikelihoodEngine:
    """Log probabilities of responses on one model that this process holds whole.

    Raises:
        ModelError: the model lies in pieces on several ranks.
    """

    def __init__(self, model: PreTrainedModel, token_budget: int | None = None, path: Path = "auto") -> None:
        if is_sharded(model):
            raise ModelError("likelihoods need a model that one process holds whole; run without ZeRO-3 or FSDP")
        self.runner = Runner(model)
        self.limits: InputLimits = input_limits(model)
        default = 2048 if self.runner.device.type == "cpu" else 16384
        self.budget = TokenBudget(logits_budget(model, token_budget or default))
        self.choice = PathChoice(path, self.runner)
        self.tokens_computed = 0

    def log_probs(self, groups: Sequence[PromptGroup], on_progress: OnProgress | None = None) -> list[list[float]]:
        """For each group the log probability of each of its responses given its prompt, in nats.

        A first token without any prompt before it is not counted, since nothing predicts it.

        Raises:
            ModelError: the model has no place for a token, cannot run, or gives no finite numbers.
        """
        if not groups:
            return []
        highest = max(max(ids, default=0) for group in groups for ids in (group.prompt_ids, *group.responses))
        self.limits.check(highest, max(group.longest for group in groups))
        with self.runner.session():
            found = self._chosen(groups, on_progress)
        if not all(one.isfinite().all() for one in found):
            raise ModelError(
                f"log probabilities of {type(self.runner.model).__name__} are not finite numbers: weights are broken, "
                "or the dtype is too narrow for them. Try --dtype float32."
            )
        return [one.tolist() for one in found]

    def _chosen(self, groups: Sequence[PromptGroup], on_progress: OnProgress | None) -> list[torch.Tensor]:
        sample = [max(groups, key=lambda group: group.longest), *groups[:_CHECK_GROUPS]]
        self.choice.check(groups, sample, self._computed, partial(self._compare, sample))
        try:
            return self._computed(self.choice.layout, groups, on_progress)
        except UnsupportedAttentionError as error:
            if self.choice.leaves(error):
                return self._chosen(groups, on_progress)
            path = self.choice.path
            raise ModelError(f"path: {path} cannot run this model ({error}); use 'auto' or 'plain'") from error

    def _compare(
        self, sample: Sequence[PromptGroup], found: Sequence[torch.Tensor], plain: Sequence[torch.Tensor]
    ) -> Verdict:
        needed = _AGREEMENT.get(self.runner.model.dtype, 2e-3)
        apart = _apart(found, plain, sample)
        limit = "" if apart <= needed else f", above {needed:g},"
        return Verdict(agrees=apart <= needed, how_far=f"{apart:.2g} nats{limit} by the root of tokens from")

    def _computed(
        self, layout: Layout, groups: Sequence[PromptGroup], on_progress: OnProgress | None = None
    ) -> list[torch.Tensor]:
        """[R] of each group."""
        forward = LikelihoodPass(self.runner)
        tell = on_progress or (lambda _done, _total: None)
        tokens = sum(group.tokens for group in groups)
        replaced = nullcontext() if layout == "plain" else attention_replaced(self.runner.model)
        with replaced, workers_for(forward, layout, tokens, None) as workers:
            found = run_in_batches(groups, self.budget, workers, padded=layout == "plain", on_progress=tell)
        self.tokens_computed += found.tokens
        return [one.responses for one in found.groups]


def _single(groups: Sequence[PromptGroup]) -> list[EncodedResponse]:
    return [EncodedResponse(list(one.prompt_ids), list(one.responses[0])) for one in groups]


def _apart(left: Sequence[torch.Tensor], right: Sequence[torch.Tensor], groups: Sequence[PromptGroup]) -> float:
    """The largest difference of two paths over the responses, in nats over the root of its tokens."""
    roots = [torch.tensor([len(response) for response in group.responses]).sqrt() for group in groups]
    return max(float(((a - b).abs() / root).max()) for a, b, root in zip(left, right, roots, strict=True))
