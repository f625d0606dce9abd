"""Prove that the forward passes that are read show M0: run them once more as M0, without noise, and compare."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from trl_attribution.callbacks.capture import CapturedBatch, ForwardCapture, SeenPass
from trl_attribution.callbacks.reference_pass import ReferenceModel
from trl_attribution.models.fingerprint import fingerprint
from trl_attribution.models.loading import evaluating
from trl_attribution.utils.distributed import Ranks, random_state_kept

# Distance between what a pass showed and what M0 shows, as a share of what tells the batch's sequences apart. The same
# kernels run over the same tokens, so there is next to none; dropout and noise make it 10% and more.
_TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 1e-2}
_EXACT = 1e-4
# Between two proofs, at most so much of pair and context vectors waits: a proof costs a forward over one pair.
_WAITING_BYTES = 64 * 2**20
_GROWTH = 10
_NOISY = ("drop", "jitter", "noise")


@dataclass(frozen=True)
class Fault:
    """Why what was read is not M0's."""

    reason: str
    has_moved: bool
    """Whether the model below is no longer M0 either, so that M0 has to be loaded anew."""


class Proof:
    """Evidence for one run; all ranks ask for it at the same steps.

    After the first step the pass that was read is run again, as M0 and in evaluation mode. From then on the first pair
    of that pass is run again before anything is written (so what is on disk was read before M0 was last seen to be in
    place), and the latest pass too after 10, 100, 1,000, ... steps and at the end, where the weights are compared too.

    Args:
        reference: where M0 is.
        capture: the hooks that read it.
    """

    def __init__(self, reference: ReferenceModel, capture: ForwardCapture) -> None:
        self._reference, self._capture = reference, capture
        self._weights = fingerprint(reference.model, None).weights
        self._first: SeenPass | None = None
        self._steps, self._next_step, self._next_whole = 0, 1, 1
        self._interval = 0

    def step_done(self) -> bool:
        """Count a step; whether :meth:`fault` should be asked for."""
        self._steps += 1
        return self._steps >= min(self._next_step, self._next_whole)

    def fault(self, ranks: Ranks, *, at_end: bool = False) -> Fault | None:
        """Run what was read once more; None where it shows the same. A collective of ``ranks``.

        The model is left as it was, and training goes on with the random numbers that it would have drawn.
        """
        seen = self._capture.last
        if ranks.any(seen is None):
            return None
        assert seen is not None
        is_whole = at_end or self._first is None or self._steps >= self._next_whole
        with random_state_kept(), evaluating(self._reference.called()), self._reference.as_m0():
            reason, has_moved = self._compared(seen, is_whole=is_whole)
        if not self._interval:
            waiting = 4 * 2 * seen.batch.means[0].numel() * len(seen.batch.means) // 2 * self._capture.passes
            self._interval = ranks.broadcast(max(1, _WAITING_BYTES // waiting))
        self._next_step = self._steps + self._interval
        reasons = [one for one in ranks.gather(reason) if one is not None]
        if reasons:
            # A collective where ranks share the model, so all of them or none.
            has_moved = ranks.any(has_moved) or self._weights_have_moved()
            likely = noise(self._reference.model) + (self._reference.suspects() if has_moved else [])
        elif at_end and self._weights_have_moved():
            reasons, has_moved = ["the reference model's weights changed while training"], True
            likely = self._reference.suspects()
        else:
            return None
        return Fault(reasons[0] + (f" (likely: {', '.join(likely)})" if likely else ""), has_moved)

    def _compared(self, seen: SeenPass, *, is_whole: bool) -> tuple[str | None, bool]:
        """What is wrong, if anything, and whether it shows that M0 has moved."""
        has_moved = False
        if self._first is not None:
            has_moved = self._differs(self._first) > _tolerance(self._first)
        if is_whole:
            self._next_whole = max(self._steps, 1) * _GROWTH
            difference = self._differs(seen)
            if difference > _tolerance(seen):
                return f"the reference forward is {difference:.1%} away from M0", has_moved
        if has_moved:
            return "the reference model is no longer what it was at the first step", True
        if self._first is None:
            first = seen.one_pair()
            self._first = replace(first, batch=self._again(first))
        return None, False

    def _again(self, seen: SeenPass) -> CapturedBatch:
        return self._capture.again(seen, self._reference.called())

    def _differs(self, seen: SeenPass) -> float:
        return distance(seen.batch, self._again(seen))

    def _weights_have_moved(self) -> bool:
        return fingerprint(self._reference.model, None).weights != self._weights


def distance(shown: CapturedBatch, exact: CapturedBatch) -> float:
    """How far two readings of one batch are apart, of the layer where they are farthest.

    As a share of what tells the sequences apart, since an offset that all share would hide any difference.
    """
    mine, theirs = (torch.cat([one.means, one.contexts]).nan_to_num() for one in (shown, exact))  # [2R, L, D]
    spread = _norm(theirs - theirs.mean(0, keepdim=True)).clamp_min(1e-6 * _norm(theirs).clamp_min(1e-12))
    return float((_norm(mine - theirs) / spread).max())


def noise(model: Any) -> list[str]:
    """Settings of ``model`` that may make its passes differ in training mode; they explain, they decide nothing."""
    config = model.config.get_text_config().to_dict()
    found = [
        f"{name}={value}"
        for name, value in config.items()
        if isinstance(value, float) and value > 0 and any(part in name for part in _NOISY)
    ]
    if any(isinstance(module, torch.nn.Dropout) and module.p for module in model.modules()):
        found.append("disable_dropout=False")
    alpha = getattr(model.get_input_embeddings(), "neftune_noise_alpha", None)
    return found if alpha is None else [*found, f"neftune_noise_alpha={alpha}"]


def tolerance(dtype: torch.dtype) -> float:
    """The distance up to which two readings in ``dtype`` count as the same."""
    return _TOLERANCE.get(dtype, _EXACT)


def _tolerance(seen: SeenPass) -> float:
    _, is_enabled, dtype = seen.autocast
    return tolerance(dtype if is_enabled else seen.dtype)


def _norm(stream: Tensor) -> Tensor:
    """[L], over sequences and elements."""
    return stream.double().pow(2).sum(dim=(0, 2)).sqrt()
