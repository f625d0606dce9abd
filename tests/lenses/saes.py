"""Small sparse autoencoders: random ones, one that knows a tiny model's layer, and how people store them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from tests import naive
from trl_attribution.lenses import SparseAutoencoder

HIDDEN, LATENTS = 32, 64


def random_sae(kind: Any, **changes: Any) -> SparseAutoencoder:
    torch.manual_seed(1)
    more: dict[str, Any] = {"topk": {"k": 5}, "jumprelu": {"threshold": torch.rand(LATENTS)}, "relu": {}}[kind]
    return SparseAutoencoder(
        encoder=torch.randn(HIDDEN, LATENTS),
        decoder=torch.randn(LATENTS, HIDDEN),
        encoder_bias=torch.randn(LATENTS),
        decoder_bias=torch.randn(HIDDEN),
        layer=2,
        kind=kind,
        **{"centered": kind != "jumprelu", **more, **changes},
    )


def fitted_sae(model: PreTrainedModel, sequences: list[list[int]], layer: int, axes: int = 12) -> SparseAutoencoder:
    """Both ways along the principal axes of a layer's tokens: it explains that layer, and hardly another."""
    tokens = torch.cat([naive.hidden_states(model, ids, [layer])[0] for ids in sequences])
    center = tokens.mean(dim=0)
    main = torch.linalg.svd(tokens - center, full_matrices=False).Vh[:axes]
    both = torch.cat([main, -main])
    return SparseAutoencoder(both.T, both, torch.zeros(2 * axes), center, layer=layer, kind="relu")


def save(sae: SparseAutoencoder, folder: Path, **metadata: Any) -> Path:
    """As SAELens 6 does."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"W_enc": sae.encoder, "W_dec": sae.decoder, "b_enc": sae.encoder_bias, "b_dec": sae.decoder_bias}
    if sae.threshold is not None:
        tensors["threshold"] = sae.threshold
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "sae_weights.safetensors")
    config = {
        "architecture": {"relu": "standard"}.get(sae.kind, sae.kind),
        "d_in": sae.hidden_size,
        "d_sae": sae.width,
        "apply_b_dec_to_input": sae.centered,
        "normalize_activations": sae.norm,
        "rescale_acts_by_decoder_norm": sae.by_decoder_norm,
        "metadata": {"model_name": "tiny", "hook_name": f"blocks.{sae.layer - 1}.hook_resid_post", **metadata},
    }
    (folder / "cfg.json").write_text(json.dumps(config | ({} if sae.k is None else {"k": sae.k})))
    return folder


def save_old_sae_lens(sae: SparseAutoencoder, folder: Path) -> Path:
    save(sae, folder)
    config = {
        "hook_point": f"blocks.{sae.layer}.hook_resid_pre",
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": sae.k},
        "normalize_activations": "none",
    }
    (folder / "cfg.json").write_text(json.dumps(config))
    return folder


def save_gemma_scope(sae: SparseAutoencoder, folder: Path) -> Path:
    place = folder / f"layer_{sae.layer - 1}" / "width_64" / "average_l0_9"
    place.mkdir(parents=True)
    arrays = {name: tensor.numpy() for name, tensor in _named(sae).items()}
    np.savez(place / "params.npz", **arrays)
    return place


def save_gemma_scope_2(sae: SparseAutoencoder, folder: Path) -> Path:
    place = folder / f"layer_{sae.layer - 1}_width_64_l0_small"
    place.mkdir(parents=True)
    save_file({name.lower(): tensor.contiguous() for name, tensor in _named(sae).items()}, place / "params.safetensors")
    config = {"architecture": "jump_relu", "hook_point_in": f"model.layers.{sae.layer - 1}.output"}
    (place / "config.json").write_text(json.dumps(config))
    return place


def save_sparsify(sae: SparseAutoencoder, folder: Path) -> Path:
    place = folder / f"layers.{sae.layer - 1}"
    place.mkdir(parents=True)
    tensors = {
        "encoder.weight": sae.encoder.T.contiguous(),
        "encoder.bias": sae.encoder_bias,
        "W_dec": sae.decoder,
        "b_dec": sae.decoder_bias,
    }
    save_file(tensors, place / "sae.safetensors")
    (place / "cfg.json").write_text(json.dumps({"k": sae.k, "num_latents": sae.width, "d_in": sae.hidden_size}))
    return place


def _named(sae: SparseAutoencoder) -> dict[str, Tensor]:
    assert sae.threshold is not None
    return {
        "W_enc": sae.encoder,
        "W_dec": sae.decoder,
        "b_enc": sae.encoder_bias,
        "b_dec": sae.decoder_bias,
        "threshold": sae.threshold,
    }
