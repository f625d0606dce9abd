"""Sparse autoencoders as people have them: SAELens, Gemma Scope, Sparsify, plain tensors; nothing in a file is run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl_attribution.errors import ModelError
from trl_attribution.lenses.config import SaeConfig
from trl_attribution.lenses.sae import Kind, Norm, SparseAutoencoder
from trl_attribution.utils.paths import local_path
from trl_attribution.utils.text import is_hub_id, printable

if TYPE_CHECKING:
    from torch import Tensor

_WEIGHTS = ("sae_weights.safetensors", "params.safetensors", "sae.safetensors", "params.npz", "model.safetensors")
_SETTINGS = ("cfg.json", "config.json")
_NAMES = {
    "encoder": ("W_enc", "w_enc", "encoder.weight"),
    "decoder": ("W_dec", "w_dec", "decoder.weight"),
    "encoder_bias": ("b_enc", "encoder.bias"),
    "decoder_bias": ("b_dec", "decoder.bias", "bias"),
    "threshold": ("threshold",),
}
"""What the tensors are called: by SAELens and Gemma Scope, by Gemma Scope 2, by Sparsify and dictionary_learning."""
_KINDS: dict[str, Kind] = {
    "standard": "relu",
    "relu": "relu",
    "topk": "topk",
    "jumprelu": "jumprelu",
    "jump_relu": "jumprelu",
}
_HOOKS = (
    (re.compile(r"blocks\.(\d{1,4})\.hook_resid_post"), 1),
    (re.compile(r"blocks\.(\d{1,4})\.hook_resid_pre"), 0),
    (re.compile(r"(?:.*\.)?(?:layers|h)\.(\d{1,4})(?:\.output)?"), 1),
)
"""Names of hooks on the residual stream, and how far behind their number it is written."""
_FOLDER = re.compile(r"layers?[._](\d+)(?:_.*)?")
"""How Gemma Scope and Sparsify name the folder of a layer's residual stream: layer_20, layers.20."""


@dataclass(frozen=True)
class _Files:
    """What was found in a place."""

    path: Path
    weights: Mapping[str, Tensor]
    settings: Mapping[str, Any]


def read_sae(config: SaeConfig) -> SparseAutoencoder:
    """The sparse autoencoder that ``config`` names, on the CPU in float32.

    Raises:
        ModelError: it is not there, is no autoencoder of a residual stream, or is of a kind that is not read.
    """
    name = str(config.sae)
    files = _read(_place(name))
    where = printable(name, 200)
    tensors = {part: _tensor(files, part, where) for part in _NAMES}
    encoder, decoder = tensors["encoder"], tensors["decoder"]
    if encoder is None or decoder is None:
        there = ", ".join(printable(one, 40) for one in sorted(files.weights)[:12])
        raise ModelError(f"{where} is no sparse autoencoder: it lacks W_enc or W_dec; it has {there}")
    bias = tensors["decoder_bias"]
    hidden = bias.shape[0] if bias is not None else min(decoder.shape)
    encoder, decoder = _turned(encoder, hidden, "encoder", where), _turned(decoder, hidden, "decoder", where).T
    if encoder.shape[1] != decoder.shape[0]:
        raise ModelError(f"{where}: the encoder has {encoder.shape[1]:,} latents and the decoder {decoder.shape[0]:,}")
    kind, k = _kind(files.settings, tensors["threshold"], config.k, where)
    return SparseAutoencoder(
        encoder=encoder.contiguous(),
        decoder=decoder.contiguous(),
        encoder_bias=_or_zeros(tensors["encoder_bias"], decoder.shape[0], where),
        decoder_bias=_or_zeros(bias, hidden, where),
        layer=config.layer if config.layer is not None else _layer(files, where),
        kind=kind,
        threshold=None if kind != "jumprelu" else _or_zeros(tensors["threshold"], decoder.shape[0], where),
        k=k,
        centered=bool(files.settings.get("apply_b_dec_to_input", kind != "jumprelu")),
        norm=_norm(files.settings, where),
        by_decoder_norm=bool(files.settings.get("rescale_acts_by_decoder_norm", False)),
        name=name,
        made_for=str(files.settings.get("model_name") or ""),
    )


def _place(name: str) -> Path:
    """The file, or the folder, that ``name`` means; what a Hub id names is fetched."""
    path = local_path(name, ModelError)
    if path.exists():
        return path
    repository, _, folder = name.partition(":")
    if not is_hub_id(repository):
        raise ModelError(f"no sparse autoencoder at {printable(name)}: no such file or folder, and no Hub id")
    from huggingface_hub import snapshot_download

    folder = folder.strip("/")
    below = f"{folder}/" if folder else ""
    wanted = [f"{below}{one}" for one in (*_WEIGHTS, *_SETTINGS)]
    try:
        return Path(snapshot_download(repository, allow_patterns=wanted), folder)
    except Exception as error:
        raise ModelError(f"cannot fetch the sparse autoencoder {printable(name)}: {printable(error, 200)}") from error


def _read(path: Path) -> _Files:
    """Weights and settings in ``path``."""
    file = path
    if path.is_dir():
        found = [path / one for one in _WEIGHTS if (path / one).is_file()]
        if not found:
            listed = ", ".join(_WEIGHTS)
            raise ModelError(f"{printable(path)} holds no sparse autoencoder: none of {listed} is in it")
        file = found[0]
    return _Files(path, dict(_tensors(file)), _settings(file.parent))


def _tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    import torch

    try:
        if file.suffix == ".npz":
            import numpy as np

            with np.load(file, allow_pickle=False) as arrays:
                yield from ((name, torch.from_numpy(arrays[name]).float()) for name in arrays.files)
            return
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            yield from ((name, tensor.float()) for name, tensor in load_file(file).items())
            return
    except Exception as error:  # whatever a reader makes of a broken file
        raise ModelError(f"cannot read the sparse autoencoder {printable(file)}: {printable(error, 200)}") from error
    raise ModelError(
        f"{printable(file)}: a sparse autoencoder is read from .safetensors or .npz; save other files as safetensors, "
        "with W_enc, b_enc, W_dec, b_dec and, for a JumpReLU, threshold"
    )


def _settings(folder: Path) -> dict[str, Any]:
    """What the JSON beside the weights says, flat, under SAELens' names of today."""
    for path in (folder / name for name in _SETTINGS if (folder / name).is_file()):
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ModelError(f"cannot read {printable(path)}: {printable(error, 200)}") from error
        if not isinstance(values, dict):
            raise ModelError(f"{printable(path)} holds no JSON object")
        inner = values.get("metadata")
        flat = {**values, **(inner if isinstance(inner, dict) else {})}
        older = {"hook_point": "hook_name", "hook_point_in": "hook_name", "activation_fn_str": "activation_fn"}
        return {older.get(name, name): value for name, value in flat.items()}
    return {}


def _tensor(files: _Files, part: str, where: str) -> Tensor | None:
    found = next((files.weights[name] for name in _NAMES[part] if name in files.weights), None)
    axes = 2 if part in ("encoder", "decoder") else 1
    if found is not None and found.dim() != axes:
        raise ModelError(f"{where}: {part} has shape {tuple(found.shape)}, expected {axes} axes")
    return found


def _turned(weights: Tensor, hidden: int, part: str, where: str) -> Tensor:
    """``[D, F]``, whichever way round they are stored: there are more latents than hidden dimensions, or as many."""
    if hidden not in weights.shape:
        raise ModelError(f"{where}: {part} has shape {tuple(weights.shape)}, of which none is b_dec's {hidden}")
    square = weights.shape[0] == weights.shape[1]
    first = (part == "encoder") if square else weights.shape[0] == hidden
    return weights if first else weights.T


def _or_zeros(bias: Tensor | None, size: int, where: str) -> Tensor:
    import torch

    if bias is None:
        return torch.zeros(size)
    if bias.shape[0] != size:
        raise ModelError(f"{where}: a bias or threshold has {bias.shape[0]:,} values where there are {size:,}")
    return bias


def _kind(settings: Mapping[str, Any], threshold: Tensor | None, asked: int | None, where: str) -> tuple[Kind, Any]:
    """How latents are cut off, and how many are kept a token."""
    extra = settings.get("activation_fn_kwargs")
    k = asked or settings.get("k") or (extra.get("k") if isinstance(extra, dict) else None)
    named = str(settings.get("architecture") or ("jumprelu" if threshold is not None else "standard")).lower()
    if k and named == "standard":
        named = "topk"
    if named not in _KINDS or settings.get("finetuning_scaling_factor"):
        shown = printable(named, 40) if named not in _KINDS else "one with a finetuning scaling factor"
        raise ModelError(f"{where}: {shown} is no architecture that is read here; read are ReLU, JumpReLU and TopK")
    kind = _KINDS[named]
    if kind == "jumprelu" and asked:
        raise ModelError(f"{where}: a JumpReLU keeps what exceeds its threshold, however many; leave out --sae-k")
    if kind == "jumprelu" and threshold is None:
        raise ModelError(f"{where}: a JumpReLU without its threshold")
    if kind == "topk" and (not isinstance(k, int) or k < 1):
        raise ModelError(f"{where}: a TopK autoencoder whose files do not say its k; give it with --sae-k")
    return kind, k if kind == "topk" else None


def _norm(settings: Mapping[str, Any], where: str) -> Norm:
    asked = str(settings.get("normalize_activations") or "none")
    known: dict[str, Norm] = {
        "none": "none",
        "layer_norm": "layer_norm",
        "constant_norm_rescale": "constant_norm_rescale",
    }
    if asked not in known:
        raise ModelError(
            f"{where}: its activations were normalized by {printable(asked, 60)}, with a factor that its files do not "
            "hold; fold it into the weights (SAELens: fold_activation_norm_scaling_factor) and save it again"
        )
    return known[asked]


def _layer(files: _Files, where: str) -> int:
    """From the hook that the settings name, else from the folder's name."""
    hook = str(files.settings.get("hook_name") or "")
    if hook == "hook_embed":
        return 0
    for pattern, behind in _HOOKS:
        if match := pattern.fullmatch(hook):
            return int(match[1]) + behind
    if hook:
        raise ModelError(
            f"{where} is an autoencoder of {printable(hook, 80)}, not of the residual stream after a block. "
            "Take one of the residual stream; or, where that is its name for it, give its layer with --sae-layer."
        )
    for part in reversed(files.path.parts[-4:]):
        if part in ("embedding", "embed_tokens"):
            return 0
        if match := _FOLDER.fullmatch(part):
            return int(match[1]) + 1
    raise ModelError(f"{where}: its files do not say which layer it is of; give it with --sae-layer")
