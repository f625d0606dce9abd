"""What identifies M0: a digest of its config, its weights and its chat template."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from trl_attribution.errors import ModelError
from trl_attribution.models.adapter import REFERENCE
from trl_attribution.models.identity import ModelFingerprint, digest_of
from trl_attribution.models.quantization import quantization_of
from trl_attribution.models.text_part import text_part
from trl_attribution.utils.distributed import full_parameter

# Settings of a load or a library version, not of the function the model computes; sub-configs have them too.
_VOLATILE_CONFIG = frozenset(
    {
        "_name_or_path",
        "_model_name_or_path",
        "_attn_implementation",
        "architectures",
        "dtype",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "quantization_config",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)
_SAMPLES_PER_TENSOR = 4096
# What PEFT (the first three), torch.compile and activation checkpointing put between a module and its parameters.
_WRAPPERS = re.compile(
    r"\b(base_layer|original_module|token_adapter|_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\."
)


def fingerprint(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase | None) -> ModelFingerprint:
    """The fingerprint of ``model`` with ``tokenizer``.

    Weights are sampled (4,096 evenly spread elements of every parameter) and rounded to bfloat16 first, so that one
    checkpoint has one fingerprint whether it is loaded in float32 or bfloat16; training moves some of the elements
    across a rounding step. A load in float16, which cannot hold every bfloat16 value, may have another fingerprint.
    An edit of a few single weights can go unseen.

    It is of what text goes through, under the names that a causal language model has: a checkpoint with a vision tower
    has one fingerprint, loaded with the tower or without.

    M0 is the same whatever it is wrapped in: DDP, an engine, torch.compile and PEFT adapters do not count (the
    weights of the adapters are left out). Where ranks hold pieces of the parameters, all of them have to call this.
    """
    base = unwrapped(model)
    return ModelFingerprint(
        config=digest_of(json.dumps(_stable(text_part(base).config.to_diff_dict()), sort_keys=True, default=str)),
        weights=_weights_digest(_text_parameters(base)),
        chat_template=tokenizer_digest(tokenizer),
        quantization=quantization_of(base),
    )


def with_adapter(identity: ModelFingerprint, model: torch.nn.Module, adapter: str = REFERENCE) -> ModelFingerprint:
    """The identity of a model that is M0 together with its ``adapter``: not the one of the model below.

    Probes have to be built on the same M0, so those of the base model are refused.
    """
    digest = hashlib.sha256(identity.weights.encode())
    for name, parameter in sorted(model.named_parameters(), key=lambda item: item[0]):
        if f".{adapter}." in name:
            with full_parameter(parameter) as whole:
                digest.update(name.encode())
                digest.update(whole.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes())
    return replace(identity, weights=digest.hexdigest()[:32])


def vision_digest(model: torch.nn.Module, processor: ProcessorMixin | None) -> str:
    """What images go through, which is no part of a fingerprint: weights and settings of all but the text part.

    With the processor's chat template, which says where images stand, and need not be the tokenizer's.
    """
    base, settings = unwrapped(model), getattr(processor, "image_processor", None)
    text = {id(parameter) for parameter in text_part(base).module.parameters()}
    weights = _weights_digest((name, one) for name, one in own_parameters(base) if id(one) not in text)
    of_images = {} if settings is None else settings.to_dict()
    # Its class depends on what is installed.
    kept = {name: value for name, value in of_images.items() if not name.endswith(("_type", "_class"))}
    template = getattr(processor, "chat_template", None)
    return digest_of(weights + json.dumps([kept, template], sort_keys=True, default=str))


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase | None) -> str:
    """The chat template's part of a fingerprint."""
    return digest_of(json.dumps(getattr(tokenizer, "chat_template", None), sort_keys=True))


def _stable(config: Any) -> Any:
    """A config, or any value in one, without its volatile settings at any depth."""
    if isinstance(config, dict):
        return {key: _stable(value) for key, value in config.items() if key not in _VOLATILE_CONFIG}
    if isinstance(config, list | tuple):
        return [_stable(value) for value in config]
    return config


def unwrapped(model: torch.nn.Module) -> PreTrainedModel:
    """The transformers model inside DDP, an engine, torch.compile or PEFT; PEFT's layers stay inside it.

    Raises:
        ModelError: there is none.
    """
    inner: Any = model
    while not isinstance(inner, PreTrainedModel):
        if hasattr(inner, "get_base_model"):
            inner = inner.get_base_model()
        elif isinstance(inner, torch.nn.Module) and {"module", "_orig_mod"} & inner._modules.keys():  # noqa: SLF001
            inner = inner.module if "module" in inner._modules else inner._orig_mod  # noqa: SLF001
        else:
            raise ModelError(f"{type(model).__name__} is no transformers model, nor a known wrapper around one")
    return inner


def _weights_digest(parameters: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, parameter in sorted(parameters, key=lambda item: item[0]):
        with full_parameter(parameter) as whole:
            digest.update(f"{name}:{tuple(whole.shape)};".encode())
            digest.update(_sample(whole.detach()).view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:32]


def _text_parameters(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """The parameters that text goes through, by the names that they have in a causal language model."""
    part = text_part(model)
    if not part.path:
        yield from own_parameters(model)
        return
    head = model.get_output_embeddings()
    of_head = {id(parameter) for parameter in head.parameters()} if head is not None else set()
    # What was built from the config of the text is the decoder, or all of a causal language model with its head.
    prefix = "" if head is None or any(module is head for module in part.module.modules()) else "model."
    path = replace(part, path=_WRAPPERS.sub("", f"{part.path}.").removesuffix("."))
    for name, parameter in own_parameters(model):
        inside = path.own_name(name)
        if inside is not None:
            yield prefix + inside, parameter
        elif id(parameter) in of_head:
            yield f"lm_head.{name.rpartition('.')[2]}", parameter


def own_parameters(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """The model's parameters by the names that they have without wrappers, adapters left out."""
    adapters = {
        f"{path}.{part}."
        for path, module in model.named_modules()
        # PEFT's layers, of whatever kind of adapter, say which of their parts belong to it.
        for part in (*getattr(module, "adapter_layer_names", ()), *getattr(module, "other_param_names", ()))
    }
    for name, parameter in model.named_parameters():
        if not any(f"{name}.".startswith(adapter) for adapter in adapters):
            yield _WRAPPERS.sub("", name), parameter


def _sample(parameter: Tensor) -> Tensor:
    flat = parameter.reshape(-1)
    if flat.numel() > _SAMPLES_PER_TENSOR:
        # An odd stride, so that samples do not all fall into one column of a power-of-two matrix.
        stride = flat.numel() // _SAMPLES_PER_TENSOR | 1
        flat = flat[::stride]
    return flat.to("cpu", torch.bfloat16).contiguous()
