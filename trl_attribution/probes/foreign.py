"""Readers of foreign vector files: GGUF control vectors, PyTorch files without code, safetensors."""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from torch import Tensor

from trl_attribution.errors import WRONG_VALUES, ProbeError
from trl_attribution.utils.text import printable, some

_LAYER_KEY = re.compile(r"(?:layers?[._-]?)?(\d+)")
_GGUF_KEY = re.compile(r"direction\.(\d+)")


@dataclass(frozen=True)
class ForeignVectors:
    """Directions read from a foreign file."""

    directions: dict[int, Tensor]
    """Our layer -> ``[D]`` float32."""
    digest: str
    """SHA-256 of the file."""
    details: dict[str, Any] = field(default_factory=dict)
    """What else the file says of itself, plain values."""
    prompts: list[dict[int, Tensor]] = field(default_factory=list)
    """Layer -> ``[D]`` of each single prompt, where the file has them."""
    of_hidden_states: bool = False
    """Whether layers are places in transformers' ``hidden_states``, whose last one is after the final norm."""


def read_foreign(path: Path, layers: Sequence[int] | None = None, block_offset: int = 1) -> ForeignVectors:
    """The directions in ``path``, by its suffix; ``layers`` names the rows of a tensor that does not say.

    Raises:
        ProbeError: there is no such file, its type is unknown, it is broken, it needs code to be run, or it does
            not say its layers and ``layers`` is not given.
    """
    if not path.is_file():
        raise ProbeError(f"no file {path} to import a probe from; check the path")
    suffix = path.suffix.lower()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if suffix == ".gguf":
        return _from_gguf(path, block_offset, digest)
    if suffix in (".pt", ".pth", ".bin"):
        return _from_torch(path, layers, digest)
    if suffix == ".safetensors":
        return ForeignVectors(_from_mapping(path, _load_safetensors(path), layers), digest)
    raise ProbeError(f"{path}: cannot import {suffix or 'a file without suffix'}; read are .gguf, .pt and .safetensors")


def _from_gguf(path: Path, block_offset: int, digest: str) -> ForeignVectors:
    try:
        from gguf import GGUFReader, dequantize
    except ImportError as error:
        raise ProbeError(f"reading {path} needs the package gguf: pip install gguf") from error
    try:
        reader = GGUFReader(path)
        kind, hint = (
            found.contents() if (found := reader.get_field(key)) is not None else None
            for key in ("general.architecture", "controlvector.model_hint")
        )
        named = {str(one.name): dequantize(one.data, one.tensor_type) for one in reader.tensors}
    except (ValueError, KeyError, IndexError, TypeError, OSError) as error:
        raise ProbeError(f"{path} is not a whole GGUF file: {printable(error)}") from error
    if kind != "controlvector":
        raise ProbeError(f"{path} is a GGUF file of kind {printable(kind, 40)!r}, not a control vector")
    directions = {
        int(match[1]) + block_offset: _row(path, name, torch.from_numpy(np.array(named[name], dtype=np.float32)))
        for name in named
        if (match := _GGUF_KEY.fullmatch(name))
    }
    if not directions:
        raise ProbeError(f"{path} has no tensor direction.N; its tensors are {_listed(named)}")
    return ForeignVectors(directions, digest, {"block_offset": block_offset, "model_hint": hint})


def _from_torch(path: Path, layers: Sequence[int] | None, digest: str) -> ForeignVectors:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        raise ProbeError(
            f"{path} cannot be read as tensors alone: it is broken, or a pickle that needs code to be run, which is "
            "refused. Where it was made, save only the tensor or a dict of layer -> tensor: "
            "torch.save({20: vector}, path)."
        ) from error
    if isinstance(content, Tensor):
        return ForeignVectors(_from_tensor(path, content, layers), digest)
    if not isinstance(content, Mapping):
        raise ProbeError(f"{path} holds a {type(content).__name__}, not a tensor or a dict of layer -> tensor")
    if isinstance(content.get("direction"), Mapping):
        return _from_artifact(path, content, digest)
    return ForeignVectors(_from_mapping(path, content, layers), digest)


def _from_artifact(path: Path, content: Mapping[str, Any], digest: str) -> ForeignVectors:
    """The artifact of the paper's code: ``direction`` by place in ``hidden_states``, maybe a ``bank`` by prompt."""
    bank = content.get("bank")
    prompts = list(bank.values()) if isinstance(bank, Mapping) else []
    plain = {key: content[key] for key in ("model", "toxic_model", "processed_samples") if key in content}
    return ForeignVectors(
        directions=_by_layer(path, content["direction"]),
        digest=digest,
        details={key: value for key, value in plain.items() if isinstance(value, str | int)},
        prompts=[_by_layer(path, one) for one in prompts if isinstance(one, Mapping)],
        of_hidden_states=True,
    )


def _from_mapping(path: Path, content: Mapping[Any, Any], layers: Sequence[int] | None) -> dict[int, Tensor]:
    if content and all(_layer_of(key) is not None for key in content):
        return _by_layer(path, content)
    tensors = [value for value in content.values() if isinstance(value, Tensor)]
    if len(tensors) == 1:
        return _from_tensor(path, tensors[0], layers)
    raise ProbeError(
        f"{path}: cannot tell which entry is a layer's direction among {_listed(content)}. "
        "Name the entries by layer (20, layer_20 or layer.20), or save a single tensor."
    )


def _by_layer(path: Path, content: Mapping[Any, Any]) -> dict[int, Tensor]:
    directions: dict[int, Tensor] = {}
    for key, value in content.items():
        layer = _layer_of(key)
        if layer is None or not isinstance(value, Tensor):
            raise ProbeError(f"{path}: entry {printable(key, 40)!r} is not a layer's tensor")
        if layer in directions:
            raise ProbeError(f"{path}: layer {layer} is there twice")
        directions[layer] = _row(path, key, value)
    if not directions:
        raise ProbeError(f"{path}: holds no directions")
    return directions


def _from_tensor(path: Path, tensor: Tensor, layers: Sequence[int] | None) -> dict[int, Tensor]:
    rows = tensor[None] if tensor.dim() == 1 else tensor
    if rows.dim() != 2:
        raise ProbeError(f"{path}: a tensor of shape {tuple(tensor.shape)}; a direction is [D], or [L, D]")
    if not layers:
        raise ProbeError(
            f"{path}: a tensor of shape {tuple(tensor.shape)} does not say which layers it is of. "
            f"Give {'its layer' if len(rows) == 1 else f'its {len(rows)} layers'} (--layer)."
        )
    if len(layers) != len(rows) or len(set(layers)) != len(layers):
        raise ProbeError(f"{path}: {len(rows)} rows, but the layers given are {', '.join(map(str, layers))}")
    return {layer: _row(path, layer, row) for layer, row in zip(layers, rows, strict=True)}


def _row(path: Path, key: object, tensor: Tensor) -> Tensor:
    if tensor.dim() != 1 or not tensor.is_floating_point():
        raise ProbeError(
            f"{path}: entry {printable(key, 40)!r} is {tensor.dtype} of shape {tuple(tensor.shape)}; "
            "a layer's direction is floating-point [D]"
        )
    return tensor.detach().float().clone()


def _layer_of(key: object) -> int | None:
    if isinstance(key, int) and not isinstance(key, bool):
        return key if key >= 0 else None
    match = _LAYER_KEY.fullmatch(key) if isinstance(key, str) else None
    return int(match[1]) if match else None


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = parse_safetensors(path.read_bytes())
    except (SafetensorError, *WRONG_VALUES) as error:
        raise ProbeError(f"{path} is not a whole safetensors file: {printable(error)}") from error
    return tensors


def _listed(names: Mapping[Any, Any]) -> str:
    return some([printable(key, 40) for key in names]) or "nothing"
