"""Where M0 is inside a trainer: which of its forward passes can be read, and how to get at M0 again afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from trl_attribution.callbacks.compat import ResponseMask, response_mask, tuners, unknown
from trl_attribution.errors import SettingsError
from trl_attribution.models.fingerprint import own_parameters, unwrapped
from trl_attribution.utils.text import some

Source = Literal[
    "reference model", "disabled adapter", "reference adapter", "precompute pass", "dedicated pass", "loaded copy"
]


@dataclass(frozen=True)
class ReferenceModel:
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
    called: Callable[[], Any]
    """What is called for ``model`` to run, with all that is wrapped around it by now."""
    adapter: str | None = None
    """The adapter that is part of M0: the frozen copy of one that is trained on."""
    is_m0: bool = True
    """Whether ``as_m0`` gives M0 at all; where it does not, M0 has to be loaded anew."""
    suspects: Callable[[], list[str]] = list
    """What else acts on the models while training, for a message."""
    callers: tuple[torch.nn.Module, ...] = ()
    """Modules that call ``model``, perhaps past its hooks."""
    response_mask: ResponseMask = unknown
    """Which tokens of a forward pass that has no labels are responses."""
    pair_ids: Callable[[], Tensor | None] = lambda: None
    """What the trainer's collator says of the batch that is computed."""

    @property
    def is_free(self) -> bool:
        """Whether the trainer runs M0 over every batch by itself."""
        return self.source in ("reference model", "disabled adapter", "reference adapter")


def dpo_reference(trainer: Any) -> ReferenceModel:
    """M0 in a ``DPOTrainer``."""
    return replace(_kept_reference(trainer, "DPOTrainer"), response_mask=response_mask(trainer))


def kto_reference(trainer: Any) -> ReferenceModel:
    """M0 in a ``KTOTrainer``, whose own passes over it are not read."""
    found = _kept_reference(trainer, "KTOTrainer")
    reason = "the rows of a KTO example stand in several batches, and M0's own responses in none"
    return dedicated(found, reason) if found.is_free else found


def _kept_reference(trainer: Any, name: str) -> ReferenceModel:
    """M0 in a trainer that runs it over its batches; ``name`` is the trainer's, for the report."""
    reason = None
    if trainer.args.precompute_ref_log_probs:
        reason = "precompute_ref_log_probs runs M0 before training"
    elif trainer.ref_model is not None and (holder := _holder(trainer)) is not None:
        reason = f"{holder} holds the reference model, which it may change while training"
    if trainer.ref_model is None:
        found = _adapter_reference(trainer.model, name) if reason is None else policy_reference(trainer.model, reason)
        return replace(found, suspects=lambda: _others(trainer))
    found = _own_model(trainer, name)
    # A reference model that was given is M0 whatever the policy is, as it is for TRL.
    return found if reason is None else replace(dedicated(found, reason), stays=_holder(trainer) is None)


def _own_model(trainer: Any, name: str) -> ReferenceModel:
    policy = trainer.model
    return ReferenceModel(
        "reference model",
        f"{name} keeps one",
        unwrapped(trainer.ref_model),
        lambda: bool(policy.training),
        _as_it_is,
        True,
        lambda: trainer.ref_model,
        suspects=lambda: _others(trainer),
    )


def rollout_reference(trainer: Any, name: str) -> ReferenceModel:
    """M0 in a trainer that generates what it trains on, which the callback runs itself over what is generated.

    Where it does not stay (``beta=0`` keeps no reference model), it is the policy before its first step, and has to be
    loaded once more.
    """
    model = trainer.model
    if trainer.ref_model is not None:
        found, holder = _own_model(trainer, name), _holder(trainer)
        if holder is None:
            return found
        return replace(found, reason=f"{holder} holds the reference model, which it may change", stays=False)
    if not is_peft(model):
        return policy_reference(model, f"{name} keeps no reference model (beta=0)")
    if getattr(trainer, "use_vllm", False):
        reason = "for vLLM the adapter is merged into the model below it again and again, which leaves rounding there"
        return replace(policy_reference(model, reason), stays=False)
    if trained := trained_below(model):
        return policy_reference(model, f"the adapter trains weights of the model below it: {some(trained, 2)}")
    source: Source = "reference adapter" if "ref" in model.peft_config else "disabled adapter"
    return replace(policy_reference(model, "the policy without its trained adapter"), source=source)


def precompute_reference(trainer: Any) -> ReferenceModel:
    """M0 during the pass that ``DPOTrainer`` makes over its datasets with ``precompute_ref_log_probs``."""

    def called() -> Any:
        # As TRL chooses; before 1.9 it has no engine for this.
        return getattr(trainer, "_precompute_engine", None) or trainer.ref_model or trainer.model

    return replace(dpo_reference(trainer), source="precompute pass", is_training_pass=_always, called=called)


def dedicated(reference: ReferenceModel, reason: str) -> ReferenceModel:
    """The same M0, to be read in a pass of its own."""
    return replace(reference, source="dedicated pass", reason=reason, is_training_pass=_never)


def loaded_copy(reference: ReferenceModel, model: PreTrainedModel) -> ReferenceModel:
    """The same M0 as a ``model`` of its own beside the policy."""
    return replace(
        reference,
        source="loaded copy",
        model=model,
        as_m0=_as_it_is,
        stays=True,
        called=lambda: model,
        is_m0=True,
        callers=(),
    )


def policy_reference(model: Any, reason: str) -> ReferenceModel:
    """The policy before its first step; an adapter is switched off (or replaced by its frozen copy)."""
    found = ReferenceModel("dedicated pass", reason, unwrapped(model), _never, _as_it_is, False, lambda: model)
    if not is_peft(model):
        return found
    return replace(
        found,
        as_m0=lambda: _reference_adapter(model),
        stays=not trained_below(model),
        callers=tuners(model),
        adapter="ref" if "ref" in model.peft_config else None,
    )


def trained_below(model: Any) -> list[str]:
    """Parameters of the model below an adapter that are trained along with it: without the adapter it is not M0."""
    return [name for name, parameter in own_parameters(unwrapped(model)) if parameter.requires_grad]


def _others(trainer: Any) -> list[str]:
    """Callbacks that are neither transformers' nor ours."""
    kinds = [type(callback) for callback in trainer.callback_handler.callbacks]
    ours = __name__.partition(".")[0]
    return [kind.__name__ for kind in kinds if kind.__module__.partition(".")[0] not in ("transformers", ours)]


def _holder(trainer: Any) -> str | None:
    """A callback of ``trainer`` that holds its reference model: nobody needs it there but to change it."""
    model = unwrapped(trainer.ref_model)
    for callback in trainer.callback_handler.callbacks:
        for value in vars(callback).values():
            if isinstance(value, torch.nn.Module) and any(module is model for module in value.modules()):
                return type(callback).__name__
    return None


def loop_reference(model: Any, policy: Any) -> ReferenceModel:
    """M0 in a training loop of the user's own, which says itself which of its forward passes are to be read.

    ``is_training_pass`` of the result only tells whether ``model`` computes M0 at the moment.

    Args:
        model: what the loop runs for its reference.
        policy: the model that is trained, where it is known.

    Raises:
        SettingsError: M0 cannot be had from ``model``.
    """
    run, model = model, _peeled(model)
    if not is_peft(model):
        if policy is not None and unwrapped(policy) is unwrapped(model):
            raise SettingsError(
                "reference_model: it is the policy itself, which is M0 before the first step only. Give the frozen "
                "copy that the loop runs for its reference, or train an adapter."
            )
        return ReferenceModel(
            "reference model", "the loop runs it", unwrapped(model), _always, _as_it_is, True, lambda: run
        )
    layer = _adapted_layer(model)
    if layer is None:
        raise SettingsError(
            "the reference model has learned prompts, and nothing in it tells whether they are on. Give a reference "
            "model without adapter."
        )
    if trained := trained_below(model):
        raise SettingsError(
            f"reference_model: the adapter trains weights of the model below it ({some(trained, 2)}), which is not M0 "
            "after the first step. Give a frozen reference model without adapter."
        )
    return ReferenceModel(
        "disabled adapter",
        "the loop runs the policy without its adapter",
        unwrapped(model),
        lambda: bool(layer.disable_adapters),
        lambda: _reference_adapter(model),
        True,
        lambda: run,
        callers=tuners(model),
    )


def _adapter_reference(model: Any, name: str) -> ReferenceModel:
    if not is_peft(model):
        return policy_reference(model, f"{name} keeps no reference model")
    layer = _adapted_layer(model)
    if layer is None:
        return policy_reference(model, "prompt tuning leaves no sign in the model of which forward is the reference")
    if trained := trained_below(model):
        return policy_reference(model, f"the adapter trains weights of the model below it: {some(trained, 2)}")
    has_copy = "ref" in model.peft_config

    def is_training_pass() -> bool:
        is_reference = "ref" in layer.active_adapters if has_copy else layer.disable_adapters
        return bool(model.training and is_reference)

    return ReferenceModel(
        "reference adapter" if has_copy else "disabled adapter",
        f"{name} runs the policy without its adapter" if not has_copy else f"{name} keeps a copy of the adapter",
        unwrapped(model),
        is_training_pass,
        lambda: _reference_adapter(model),
        True,
        lambda: model,
        "ref" if has_copy else None,
        callers=tuners(model),
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
    while not is_peft(model) and not isinstance(model, PreTrainedModel):
        inner = getattr(model, "module", None) or getattr(model, "_orig_mod", None)
        if inner is None:
            return model
        model = inner
    return model


def _never() -> bool:
    return False


def is_peft(model: torch.nn.Module) -> bool:
    """Whether ``model`` is PEFT's wrapper around another one."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")
