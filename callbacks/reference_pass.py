"""Where M0 is inside a trainer: which of its forward passes can be read, and how to get at M0 again afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from trl_attribution.errors import SettingsError
from trl_attribution.models.fingerprint import unwrapped

Source = Literal["reference model", "disabled adapter", "reference adapter", "precompute pass", "dedicated pass"]
_WITHOUT_REFERENCE = ("RewardTrainer", "CPOTrainer", "ORPOTrainer")
SUPPORTED = ("DPOTrainer", *_WITHOUT_REFERENCE)
_CONFIGS = tuple(name.replace("Trainer", "Config") for name in SUPPORTED)
_UNSUPPORTED = (
    f"is not supported: AttributionCallback audits {', '.join(SUPPORTED)} of TRL. For a training loop of your own use "
    "AttributionTracker; any dataset can be audited with trl-attribution audit."
)


@dataclass(frozen=True)
class Reference:
    """M0 as one training run has it."""

    source: Source
    reason: str
    """Why this source, for the audit's report."""
    model: PreTrainedModel
    """The module that owns M0's blocks; with an adapter the policy owns them too."""
    is_training_pass: Callable[[], bool]
    """Asked at the start of a forward pass of ``model``: is it M0 over a training batch?"""
    as_m0: Callable[[], Any]
    """A context in which ``model`` computes what M0 does."""
    stays: bool
    """Whether ``model`` still is M0 after training."""

    @property
    def is_free(self) -> bool:
        """Whether the trainer runs M0 over every batch by itself."""
        return self.source in ("reference model", "disabled adapter", "reference adapter")


def reference_of(trainer: Any) -> Reference:
    """M0 in ``trainer``, a DPO, reward, CPO or ORPO trainer of TRL.

    Raises:
        SettingsError: another kind of trainer, or one whose M0 cannot be audited while it trains.
    """
    kind = trainer_kind(trainer)
    if kind in _WITHOUT_REFERENCE:
        return policy_reference(trainer.model, f"{kind} runs no reference forward")
    args = trainer.args
    if getattr(trainer, "_is_vision_dataset", False):
        raise SettingsError("the dataset holds images; only text pairs can be audited. Leave the callback out.")
    reason = None
    if args.precompute_ref_log_probs:
        reason = "precompute_ref_log_probs runs M0 before training"
    elif args.sync_ref_model:
        reason = "sync_ref_model=True changes the reference model while training"
    if reason is not None and trainer.ref_model is not None:  # as TRL does: a reference model that was given is M0
        stays = not args.sync_ref_model
        return Reference("dedicated pass", reason, unwrapped(trainer.ref_model), _never, _as_it_is, stays)
    if reason is not None:
        return policy_reference(trainer.model, reason)
    if trainer.ref_model is not None:
        model = unwrapped(trainer.ref_model)
        policy = trainer.model
        return Reference(
            "reference model", "DPOTrainer keeps one", model, lambda: bool(policy.training), _as_it_is, True
        )
    return _adapter_reference(trainer.model)


def policy_reference(model: Any, reason: str) -> Reference:
    """The policy before its first step; an adapter is switched off (or replaced by its frozen copy)."""
    if _is_peft(model):
        return Reference(
            "dedicated pass", reason, unwrapped(model), _never, lambda: _reference_adapter(model), stays=True
        )
    return Reference("dedicated pass", reason, unwrapped(model), _never, _as_it_is, stays=False)


def precompute_reference(model: Any) -> Reference:
    """The policy during the pass that ``DPOTrainer`` makes over its datasets with ``precompute_ref_log_probs``."""
    return replace(
        policy_reference(model, "precompute_ref_log_probs runs M0 before training"),
        source="precompute pass",
        is_training_pass=_always,
    )


def loop_reference(model: Any, policy: Any) -> Reference:
    """M0 in a training loop of the user's own, which says itself which of its forward passes are to be read.

    ``is_training_pass`` of the result only tells whether ``model`` computes M0 at the moment.

    Args:
        model: what the loop runs for its reference.
        policy: the model that is trained, where it is known.

    Raises:
        SettingsError: M0 cannot be had from ``model``.
    """
    model = _peeled(model)
    if not _is_peft(model):
        if policy is not None and unwrapped(policy) is unwrapped(model):
            raise SettingsError(
                "reference_model: it is the policy itself, which is M0 before the first step only. Give the frozen "
                "copy that the loop runs for its reference, or train an adapter."
            )
        return Reference("reference model", "the loop runs it", unwrapped(model), _always, _as_it_is, stays=True)
    layer = _adapted_layer(model)
    if layer is None:
        raise SettingsError(
            "the reference model has learned prompts, and nothing in it tells whether they are on. Give a reference "
            "model without adapter."
        )
    return Reference(
        "disabled adapter",
        "the loop runs the policy without its adapter",
        unwrapped(model),
        lambda: bool(layer.disable_adapters),
        lambda: _reference_adapter(model),
        stays=True,
    )


def trainer_kind(trainer: Any) -> str:
    """Which of the supported trainers ``trainer`` is, subclasses included.

    Raises:
        SettingsError: none of them.
    """
    kind = _of_trl(trainer, SUPPORTED)
    if kind is None:
        raise SettingsError(f"{type(trainer).__name__} {_UNSUPPORTED}")
    return kind


def check_arguments(args: Any) -> None:
    """Make sure that ``args`` are those of a supported trainer, for a callback that does not see the trainer itself.

    Raises:
        SettingsError: they are another's.
    """
    if _of_trl(args, _CONFIGS) is None:
        raise SettingsError(f"the trainer of {type(args).__name__} {_UNSUPPORTED}")


def _of_trl(value: Any, names: Sequence[str]) -> str | None:
    """Which of TRL's classes in ``names`` the type of ``value`` is or comes from."""
    for base in type(value).__mro__:
        if base.__module__.partition(".")[0] == "trl" and base.__name__ in names:
            return base.__name__
    return None


def _adapter_reference(model: Any) -> Reference:
    layer = _adapted_layer(model)
    if layer is None:
        return policy_reference(model, "prompt tuning leaves no sign in the model of which forward is the reference")
    has_copy = "ref" in model.peft_config

    def is_training_pass() -> bool:
        is_reference = "ref" in layer.active_adapters if has_copy else layer.disable_adapters
        return bool(model.training and is_reference)

    return Reference(
        "reference adapter" if has_copy else "disabled adapter",
        "DPOTrainer runs the policy without its adapter" if not has_copy else "DPOTrainer keeps a copy of the adapter",
        unwrapped(model),
        is_training_pass,
        lambda: _reference_adapter(model),
        stays=True,
    )


def _adapted_layer(model: Any) -> Any:
    """One of the layers that an adapter is put on; None where prompts are learned instead."""
    from peft import PromptLearningConfig
    from peft.tuners.tuners_utils import BaseTunerLayer

    if any(isinstance(config, PromptLearningConfig) for config in model.peft_config.values()):
        return None
    return next(module for module in model.modules() if isinstance(module, BaseTunerLayer))


@contextmanager
def _as_it_is() -> Iterator[None]:
    yield


@contextmanager
def _reference_adapter(model: Any) -> Iterator[None]:
    """``model`` with its adapter off, or with the frozen copy that TRL made of a trained one."""
    if "ref" not in model.peft_config:
        with model.disable_adapter():
            yield
        return
    active = model.active_adapter
    training = {parameter: parameter.requires_grad for parameter in model.parameters()}
    model.set_adapter("ref")
    try:
        yield
    finally:
        model.set_adapter(active)
        for parameter, requires_grad in training.items():
            parameter.requires_grad_(requires_grad)


def _always() -> bool:
    return True


def _peeled(model: Any) -> Any:
    """``model`` without the wrappers of DDP, engines and torch.compile, which hide whether there is an adapter."""
    while not _is_peft(model) and not isinstance(model, PreTrainedModel):
        inner = getattr(model, "module", None) or getattr(model, "_orig_mod", None)
        if inner is None:
            return model
        model = inner
    return model


def _never() -> bool:
    return False


def _is_peft(model: torch.nn.Module) -> bool:
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")
