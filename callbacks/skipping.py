"""Train on without the pairs that a probe flags: ``on_flag="skip"``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from trl_attribution.manifest.weighted_loss import weigh_pairs

if TYPE_CHECKING:
    from trl_attribution.callbacks.session import TrainingAudit


def skip_flagged(trainer: Any, session: Callable[[], TrainingAudit | None]) -> None:
    """Let flagged pairs have weight 0 in the loss of ``trainer``, a ``DPOTrainer``.

    The reference forward of the step shows the pairs' vectors, and comes before the gradient does.
    """

    def weights_of(_inputs: Mapping[str, Any]) -> Tensor | None:
        audit = session()
        if audit is None:
            return None
        keep = ~audit.passes.flagged_rows()
        audit.skipped_rows += int((~keep).sum())
        return keep.float()

    weigh_pairs(trainer, weights_of)
