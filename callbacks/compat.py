"""What older TRL and PEFT do otherwise in a training step, each with the version at which it can go."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from trl_attribution.utils.compat import is_before

ResponseMask = Callable[[Tensor], Tensor | None]
"""From the token ids [R, T] of a forward pass, which of them are responses; None where that is not known."""


def response_mask(trainer: Any) -> ResponseMask:
    """Which tokens of a forward pass of ``trainer`` without labels are responses. Goes with TRL 1.15.

    Before that a ``DPOTrainer`` gives its reference model no labels, but has ``completion_mask`` in its batch.
    """
    if not is_before("trl", "1.15"):
        return unknown
    methods = [_telling(trainer, name) for name in ("compute_ref_log_probs", "compute_loss")]

    def mask(input_ids: Tensor) -> Tensor | None:
        batch = next((method.batch for method in methods if method.batch is not None), None)
        if batch is None or "completion_mask" not in batch:
            return None
        tensors = batch["input_ids"], batch["attention_mask"], batch["completion_mask"]
        if is_before("trl", "1.0"):  # its collator cuts nothing
            tensors = trainer._truncate_inputs(*tensors)  # noqa: SLF001
        found: Tensor = tensors[2]
        return found.to(input_ids.device) != 0 if found.shape == input_ids.shape else None

    return mask


def unknown(_input_ids: Tensor) -> None:
    """Labels say which tokens are responses, and nothing else does."""


class _Telling:
    """A method of a trainer that also tells which batch it is at."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self._method = method
        self.batch: Mapping[str, Any] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.batch = next(value for value in (*args, *kwargs.values()) if isinstance(value, Mapping))
        try:
            return self._method(*args, **kwargs)
        finally:
            self.batch = None


def _telling(trainer: Any, name: str) -> _Telling:
    method = getattr(trainer, name)
    if not isinstance(method, _Telling):
        method = _Telling(method)
        setattr(trainer, name, method)
    return method


def tuners(model: Any) -> tuple[nn.Module, ...]:
    """What a wrapper of PEFT calls as a module, hooks and all, for the model inside to run.

    Before 0.21 it calls that model's ``forward`` past its hooks (and goes on to with AdaLoRA).
    """
    from peft.tuners.tuners_utils import BaseTuner

    return (model.base_model,) if isinstance(model.base_model, BaseTuner) else ()
