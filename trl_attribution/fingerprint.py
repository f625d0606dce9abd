"""What identifies M0: a digest of its config, its weights and its chat template."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

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


@dataclass(frozen=True)
class ModelFingerprint:
    """Digests of the three things that decide what M0 does with a pair."""

    config: str
    weights: str
    chat_template: str

    @property
    def digest(self) -> str:
        """One hex digest of all three."""
        return _digest(f"{self.config}:{self.weights}:{self.chat_template}")

    def differences(self, other: ModelFingerprint) -> list[str]:
        """Names of the parts in which two fingerprints differ."""
        mine, theirs = asdict(self), asdict(other)
        return [part for part in mine if mine[part] != theirs[part]]

    def to_json(self) -> dict[str, str]:
        """The parts as a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ModelFingerprint:
        """The inverse of :meth:`to_json`."""
        return cls(config=value["config"], weights=value["weights"], chat_template=value["chat_template"])


def fingerprint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> ModelFingerprint:
    """The fingerprint of ``model`` with ``tokenizer``.

    Weights are sampled (4,096 evenly spread elements of every parameter) and rounded to bfloat16 first, so that one
    checkpoint has one fingerprint whether it is loaded in float32 or bfloat16; training moves some of the elements
    across a rounding step. A load in float16, which cannot hold every bfloat16 value, may have another fingerprint.
    An edit of a few single weights can go unseen.
    """
    return ModelFingerprint(
        config=_digest(json.dumps(_stable(model.config.to_diff_dict()), sort_keys=True, default=str)),
        weights=_weights_digest(model),
        chat_template=_digest(json.dumps(getattr(tokenizer, "chat_template", None), sort_keys=True)),
    )


def _stable(config: Any) -> Any:
    """A config, or any value in one, without its volatile settings at any depth."""
    if isinstance(config, dict):
        return {key: _stable(value) for key, value in config.items() if key not in _VOLATILE_CONFIG}
    if isinstance(config, list | tuple):
        return [_stable(value) for value in config]
    return config


def _weights_digest(model: PreTrainedModel) -> str:
    digest = hashlib.sha256()
    for name, parameter in _named_parameters(model):
        digest.update(f"{name}:{tuple(parameter.shape)};".encode())
        digest.update(_sample(parameter.detach()).view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:32]


def _named_parameters(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    yield from sorted(model.named_parameters(), key=lambda item: item[0])


def _sample(parameter: Tensor) -> Tensor:
    flat = parameter.reshape(-1)
    if flat.numel() > _SAMPLES_PER_TENSOR:
        # An odd stride, so that samples do not all fall into one column of a power-of-two matrix.
        stride = flat.numel() // _SAMPLES_PER_TENSOR | 1
        flat = flat[::stride]
    return flat.to("cpu", torch.bfloat16).contiguous()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:32]
