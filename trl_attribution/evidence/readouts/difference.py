"""The difference of two models as a direction: where training moved the residual stream, on the same tokens.

This reads a training run as a whole. It is no behavior vector: those are taken on M0 alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from trl_attribution.activations import ActivationConfig, ActivationEngine, PromptGroup
from trl_attribution.behaviors.encoding import encode_responses
from trl_attribution.errors import ModelError
from trl_attribution.evidence.readouts.drift import drift, mean_activations
from trl_attribution.models.fingerprint import tokenizer_digest
from trl_attribution.pairs import Encoding
from trl_attribution.probes.assembly import assemble

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trl_attribution.behaviors.encoding import PromptFormat
    from trl_attribution.evidence.readouts.expression import Shown
    from trl_attribution.models import LoadedModel
    from trl_attribution.probes import Probe


def difference_probe(
    name: str,
    m0: LoadedModel,
    m1: LoadedModel,
    spoken: Shown,
    layers: Sequence[int],
    layer: int,
    prompt_format: PromptFormat = "auto",
    blocks_path: str | None = None,
) -> Probe:
    """M1's minus M0's mean activation over the tokens of the responses in ``spoken``, as a probe of M0.

    Args:
        name: the probe's.
        m0: the model before training.
        m1: the model after.
        spoken: the tokens: prompts and responses, such as M0's own.
        layers: of the L axis, ascending.
        layer: the one that the logit lens is taken at.
        prompt_format: how text prompts are asked.
        blocks_path: where the decoder blocks live; None finds them by structure.

    Raises:
        ModelError: the two models do not share a tokenizer or a width, or all responses are empty.
        ProbeError: a prompt leaves no room for a response, or the models do not differ at a layer.
    """
    if tokenizer_digest(m0.tokenizer) != tokenizer_digest(m1.tokenizer):
        raise ModelError(f"{m0.name} and {m1.name} have different tokenizers: they cannot read the same tokens")
    groups: list[PromptGroup] = []
    for place, (prompt, texts) in enumerate(zip(spoken.prompts, spoken.texts, strict=True)):
        written = [text for text in texts if text.strip()]
        if written:
            where = f"prompt {place}"
            groups += encode_responses(prompt, written, m0.tokenizer, Encoding(), prompt_format, where)
    if not groups:
        raise ModelError("the difference of two models: every response is empty, so there are no tokens to read")
    config = ActivationConfig(tuple(layers), blocks_path=blocks_path)
    engines = [ActivationEngine(one.model, config) for one in (m0, m1)]
    if engines[0].hidden_size != engines[1].hidden_size:
        raise ModelError(
            f"{m0.name} is {engines[0].hidden_size} wide, {m1.name} {engines[1].hidden_size}: "
            "a difference needs two states of one model"
        )
    before, after = (mean_activations(engine, groups) for engine in engines)
    changes = drift(before, after, engines[0].layers)
    built = {
        "method": "difference",
        "m1": m1.name,
        "m1_fingerprint": m1.fingerprint.digest,
        "responses": sum(len(group.responses) for group in groups),
        "drift": [one.to_json() for one in changes],
    }
    return assemble(
        name,
        m0,
        layers=engines[0].layers,
        layer=layer,
        vector=torch.stack([one.mean_change for one in changes]),
        built=built,
        blocks_path=blocks_path,
    )
