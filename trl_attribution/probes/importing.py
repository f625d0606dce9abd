"""Vectors of other tools as probes bound to a model of ours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from trl_attribution.behaviors.names import check_name
from trl_attribution.errors import ProbeError
from trl_attribution.models import LoadedModel
from trl_attribution.probes.assembly import assemble
from trl_attribution.probes.foreign import ForeignVectors, read_foreign
from trl_attribution.probes.probe import Probe


@dataclass(frozen=True)
class ImportConfig:
    """What a foreign file does not say of itself."""

    layers: tuple[int, ...] | None = None
    """Where the file does not say: our layer of each row of its ``[L, D]`` (one layer for ``[D]``). Where it does:
    the layers to keep."""
    layer: int | Literal["auto"] = "auto"
    """The layer that flags are taken at; ``auto`` is the middle one."""
    block_offset: int = 1
    """GGUF only: our layer minus the N of ``direction.N``. repeng measures and adds ``direction.N`` after block N
    counted from 0, which is our layer N + 1, and llama.cpp adds it there too. llama.cpp's own cvector-generator
    measures it one block earlier: give 0 for its files."""
    sign: Literal["towards", "away"] = "towards"
    """Whether the vector points towards the undesired behavior; ``away`` turns it round."""
    top_tokens: int = 10
    """Tokens kept from the logit lens."""


def import_probe(name: str, path: str | Path, loaded: LoadedModel, config: ImportConfig | None = None) -> Probe:
    """A probe from a foreign vector, bound to ``loaded`` as its M0.

    Read are: control vectors of repeng and llama.cpp (``.gguf``); PyTorch files (``.pt``, ``.pth``, ``.bin``) with a
    tensor ``[D]`` or ``[L, D]``, a dict of layer -> tensor, or the artifact of the code published with arXiv
    2602.11079; and ``.safetensors`` with one tensor, or one a layer. Nothing in a file is ever run.

    Such a probe has no contexts, so contextual scores cannot be made with it.

    Raises:
        ProbeError: the file cannot be read, needs code to be run, does not say which layers it has (and the
            settings do not either), or its width or layers do not fit the model.
    """
    check_name(name)
    settings = config or ImportConfig()
    if settings.sign not in ("towards", "away"):
        raise ProbeError(f"the sign of an imported vector is 'towards' or 'away', not {settings.sign!r}")
    foreign = read_foreign(Path(path), settings.layers, settings.block_offset)
    blocks = int(loaded.model.config.get_text_config().num_hidden_layers)
    layers = _kept_layers(foreign, settings.layers, blocks, str(path))
    _check_fit(foreign, layers, loaded, str(path))
    turned = -1.0 if settings.sign == "away" else 1.0
    prompt_vectors = _prompt_vectors(foreign, layers)
    return assemble(
        name,
        loaded,
        layers=layers,
        layer=settings.layer,
        vector=turned * torch.stack([foreign.directions[layer] for layer in layers]),
        prompt_vectors=None if prompt_vectors is None else turned * prompt_vectors,
        top_tokens=settings.top_tokens,
        built={
            "method": "imported",
            "source": str(path),
            "source_sha256": foreign.digest,
            "sign_in_file": settings.sign,
            **foreign.details,
        },
    )


def _kept_layers(foreign: ForeignVectors, asked: tuple[int, ...] | None, blocks: int, path: str) -> list[int]:
    there = sorted(foreign.directions)
    missing = sorted(set(asked or ()) - set(there))
    if missing:
        raise ProbeError(f"{path} has no layer {missing[0]}; its layers are {', '.join(map(str, there))}")
    layers = sorted(asked) if asked else there
    if foreign.of_hidden_states and not asked:
        # The last of transformers' hidden states is taken after the final norm: it is none of our layers.
        layers = [layer for layer in layers if layer != blocks]
    outside = [layer for layer in layers if layer > blocks or (foreign.of_hidden_states and layer == blocks)]
    if outside or not layers:
        last = blocks - 1 if foreign.of_hidden_states else blocks
        raise ProbeError(
            f"{path}: layer {outside[0] if outside else blocks} does not fit the model, "
            f"whose usable layers are 0 to {last}"
        )
    return layers


def _check_fit(foreign: ForeignVectors, layers: list[int], loaded: LoadedModel, path: str) -> None:
    width = int(loaded.model.config.get_text_config().hidden_size)
    for layer in layers:
        found = foreign.directions[layer].shape[0]
        if found != width:
            raise ProbeError(
                f"{path}: the vector at layer {layer} has {found} numbers, but model {loaded.name} has hidden size "
                f"{width}. It was made for another model."
            )


def _prompt_vectors(foreign: ForeignVectors, layers: list[int]) -> Tensor | None:
    """``[M, L, D]`` of the prompts that have every layer at the right width, None when there are none."""
    shape = foreign.directions[layers[0]].shape
    complete = [
        torch.stack([rows[layer] for layer in layers])
        for rows in foreign.prompts
        if all(layer in rows and rows[layer].shape == shape for layer in layers)
    ]
    return torch.stack(complete) if complete else None
