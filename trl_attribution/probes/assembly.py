"""The last step of every builder: choose the layer, take the logit lens there, bind to M0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor

from trl_attribution.models import LoadedModel
from trl_attribution.probes.logit_lens import promoted_tokens
from trl_attribution.probes.probe import Probe
from trl_attribution.probes.separability import choose_by_controls, choose_layer, control_separability


def assemble(
    name: str,
    loaded: LoadedModel,
    *,
    layers: Sequence[int],
    layer: int | Literal["auto"],
    vector: Tensor,
    built: dict[str, Any],
    prompt_vectors: Tensor | None = None,
    contexts: Tensor | None = None,
    known: Mapping[str, Any] | None = None,
    separability: dict[int, float] | None = None,
    top_tokens: int = 10,
    blocks_path: str | None = None,
    description: str | None = None,
) -> Probe:
    """A probe of ``loaded`` with the layer chosen and the tokens it promotes there.

    Args:
        name: the probe's.
        loaded: M0.
        layers: of the L axis, ascending.
        layer: the one flags are taken at, or ``auto`` (see ``choose_layer``).
        vector: ``[L, D]``, towards the undesired behavior.
        built: how it was built, plain values.
        prompt_vectors: ``[M, L, D]``.
        contexts: ``[M, L, D]``.
        known: the behavior's own pairs and controls, by the probe's fields.
        separability: layer -> AUC, where known.
        top_tokens: how many promoted tokens to keep.
        blocks_path: where the decoder blocks live; None finds them by structure.
        description: of the behavior, where there is one.

    Raises:
        ProbeError: ``layer`` is not among ``layers``, or the vector is not a usable direction.
    """
    aucs = separability or {}
    probe = Probe(
        name=name,
        layers=tuple(layers),
        vector=vector,
        layer=choose_layer(layers, aucs, layer),
        model=loaded.fingerprint,
        prompt_vectors=prompt_vectors,
        contexts=contexts,
        **(known or {}),
        built={**built, "model_name": loaded.name, "layer_asked": layer},
        separability=aucs,
        description=description,
    )
    apart = control_separability(probe) if layer == "auto" else {}
    if apart:
        by_layer = {str(each): round(value, 4) for each, value in apart.items()}
        flag_layer = choose_by_controls(apart, int(loaded.model.config.get_text_config().num_hidden_layers))
        probe = replace(probe, layer=flag_layer, built={**probe.built, "control_separability": by_layer})
    direction = probe.at().float()
    return replace(
        probe, promoted_tokens=promoted_tokens(loaded.model, loaded.tokenizer, direction, top_tokens, blocks_path)
    )
