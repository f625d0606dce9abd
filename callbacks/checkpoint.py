"""Identifies the reference model (M0) as its checkpoint has it, whatever adapter or reward head is on it by now."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from trl_attribution.activations import ActivationConfig, ActivationEngine
from trl_attribution.activations.blocks import find_blocks
from trl_attribution.callbacks.reference_pass import ReferenceModel, is_peft
from trl_attribution.errors import ModelError, SettingsError
from trl_attribution.models import LoadedModel, load_model
from trl_attribution.models.fingerprint import fingerprint, own_parameters, with_adapter
from trl_attribution.models.identity import ModelFingerprint
from trl_attribution.models.sharding import whole_on_this_rank
from trl_attribution.pairs import EncodedPair, EncodedResponse
from trl_attribution.utils.distributed import Ranks, full_parameter, is_sharded, random_state_kept

_REWARD = "ForSequenceClassification"
_PROBED_TOKENS = 32


@dataclass(frozen=True)
class Identity:
    """What M0 is, and whether the trainer's own model can compute it."""

    fingerprint: ModelFingerprint
    is_in_memory: bool
    """False where only the checkpoint itself is M0: an adapter's initialization has changed the model below it."""


def m0_identity(
    reference: ReferenceModel, tokenizer: PreTrainedTokenizerBase, ranks: Ranks, noted: Identity | None = None
) -> Identity:
    """M0 as the checkpoint has it; ``noted`` is what a run that goes on began with. A collective.

    A reward model is the causal language model below its fresh head; one that is a reward model itself is an M0 of its
    own. A model below an adapter is M0 unless the adapter's initialization has changed it (PiSSA, OLoRA, CorDA, LoftQ):
    then the adapter, new as it is, brings the model nearer to its checkpoint, which is M0 alone. In both cases the
    checkpoint is loaded once more, to main memory, to tell.

    Raises:
        SettingsError: which of the two is M0 cannot be told.
    """
    model, policy = reference.model, reference.called()
    own = fingerprint(model, tokenizer)
    if type(model).__name__.endswith(_REWARD):
        decoder = fingerprint(model.base_model, None).weights  # a collective where ranks share the model
        with ranks.together():
            below = _below_head(model, own, decoder) if ranks.is_main else own
        return Identity(ModelFingerprint.from_json(ranks.broadcast(below.to_json())), True)
    if reference.adapter is not None:
        return Identity(with_adapter(own, model, reference.adapter), True)
    if not is_peft(policy) or (noted is not None and noted.fingerprint == own) or not does_something(policy):
        return Identity(own, True)
    found = None
    with ranks.together():
        if ranks.is_main:
            found = _below_adapter(reference, own)
    found = found or Identity(own, True)  # the main rank's counts
    told = ranks.broadcast({**found.fingerprint.to_json(), "is_in_memory": found.is_in_memory})
    return Identity(ModelFingerprint.from_json(told), bool(told["is_in_memory"]))


def _below_head(model: PreTrainedModel, own: ModelFingerprint, decoder: str) -> ModelFingerprint:
    name = str(model.config.name_or_path)
    try:
        if any(one.endswith(_REWARD) for one in AutoConfig.from_pretrained(name).architectures or ()):
            return own
        loaded = _on_cpu(model)
    except (OSError, ValueError, ModelError):  # made in memory: there is no checkpoint below it
        return own
    if fingerprint(loaded.model.base_model, None).weights != decoder:
        return own
    return ModelFingerprint(loaded.fingerprint.config, loaded.fingerprint.weights, own.chat_template)


def _below_adapter(reference: ReferenceModel, own: ModelFingerprint) -> Identity:
    name = str(reference.model.config.name_or_path)
    unknown = "the adapter already does something, so the model below it may have been changed to make room for it"
    advice = (
        "Load the model from a folder or a Hub id, initialize the adapter so that it does nothing at first "
        "(init_lora_weights=True), or give the trainer a ref_model."
    )
    try:
        checkpoint = _on_cpu(reference.model)
    except ModelError as error:
        raise SettingsError(
            f"M0 cannot be told: {unknown}, and there is no checkpoint {name!r} to compare it with ({error}). {advice}"
        ) from error
    if checkpoint.fingerprint.weights == own.weights:
        return Identity(own, True)
    if is_sharded(reference.model):
        raise SettingsError(
            f"M0 cannot be told: {unknown}; its weights are not those of {name!r}, and as ranks share it, it cannot be "
            f"run before the first step to find out why. {advice}"
        )
    wanted = _activations(checkpoint.model)
    adapted = _activations(reference.model)
    with reference.as_m0():
        without = _activations(reference.model)
    if (adapted - wanted).norm() >= (without - wanted).norm():
        return Identity(own, True)  # the user's own weights, with an adapter on top
    return Identity(ModelFingerprint(own.config, checkpoint.fingerprint.weights, own.chat_template), False)


def does_something(policy: Any) -> bool:
    """Whether the adapter, before its first step, changes what the model computes, as far as its weights tell.

    An adapter that does nothing yet has a matrix of zeros in every layer it is put on.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    below = {id(parameter) for _, parameter in own_parameters(policy.get_base_model())}
    modules: Iterator[torch.nn.Module] = policy.modules()
    for layer in modules:
        if not isinstance(layer, BaseTunerLayer):
            continue
        zero = False
        for parameter in layer.parameters():
            if id(parameter) in below:
                continue
            with full_parameter(parameter) as whole:  # a collective: every parameter, on every rank
                zero |= whole.dim() > 1 and not bool(whole.any())
        if not zero:
            return True
    return False


def _activations(model: PreTrainedModel) -> torch.Tensor:
    """What ``model`` makes of a few arbitrary tokens, after its last block."""
    tokens = torch.arange(1, 1 + _PROBED_TOKENS) * 7919 % model.config.get_text_config().vocab_size
    prompt, first, second = (part.tolist() for part in tokens.split(_PROBED_TOKENS // 2 - 4)[:3])
    pair = EncodedPair("probe", EncodedResponse(prompt, first), EncodedResponse(prompt, second))
    engine = ActivationEngine(model, ActivationConfig((len(find_blocks(model)),), path="plain"))
    return engine.pair_vectors([pair]).pair


def _on_cpu(model: PreTrainedModel) -> LoadedModel:
    with random_state_kept(), whole_on_this_rank():
        return load_model(str(model.config.name_or_path), str(model.dtype).removeprefix("torch."), "cpu")
