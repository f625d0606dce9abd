"""Train on without the pairs that a probe flags: ``on_flag="skip"``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trl_attribution.callbacks.compat import ref_log_probs

if TYPE_CHECKING:
    from trl_attribution.callbacks.session import TrainingAudit


def skip_flagged(trainer: Any, session: Callable[[], TrainingAudit | None]) -> None:
    """Let ``trainer``, a ``DPOTrainer``, leave flagged pairs out of each batch before its loss is computed.

    The reference forward of the step comes first, shows the pairs' vectors, and its log-probabilities are handed to the
    loss as precomputed ones, so that it still runs once. The loss is the mean over the pairs that stay, as on a batch
    without the others. A batch of flagged pairs only gives a loss of zero.
    """
    compute_loss = trainer._compute_loss  # noqa: SLF001  # the only place where a batch can still be changed

    def compute_loss_of_kept(model: Any, inputs: dict[str, Tensor], return_outputs: bool) -> Any:
        audit = session()
        if audit is None or not trainer.model.training:
            return compute_loss(model, inputs, return_outputs)
        reference = trainer.model if trainer.ref_model is None else trainer.ref_model
        chosen, rejected = ref_log_probs(trainer, reference, inputs)
        keep = ~audit.passes.flagged_rows()
        audit.skipped_rows += int((~keep).sum())
        scale = 1.0 if keep.any() else 0.0
        rows = torch.nonzero(keep if keep.any() else torch.ones_like(keep)).flatten().to(chosen.device)
        both = torch.cat([rows, rows + len(keep)])
        kept = {name: value[both] for name, value in inputs.items()}
        kept |= {"ref_chosen_logps": chosen[rows], "ref_rejected_logps": rejected[rows]}
        trainer.precompute_ref_logps = True
        try:
            return scale * compute_loss(model, kept, return_outputs)
        finally:
            trainer.precompute_ref_logps = False

    trainer._compute_loss = compute_loss_of_kept  # noqa: SLF001
