"""Builders: examples or two models' own responses in; a probe bound to M0 out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trl_attribution.activations import ActivationEngine
from trl_attribution.behaviors.encoding import (
    ExampleActivations,
    as_chat,
    control_activations,
    encode_example,
    example_activations,
    example_pair,
)
from trl_attribution.behaviors.examples import (
    Example,
    Examples,
    Prompts,
    Source,
    read_behavior,
    read_contrast,
    read_prompts,
)
from trl_attribution.behaviors.harmless import harmless, is_compliance, not_among
from trl_attribution.behaviors.judging import Judge, OnProgress, judge_name, judged
from trl_attribution.behaviors.likelihood_score import Witness, share_towards
from trl_attribution.behaviors.names import check_name
from trl_attribution.behaviors.responses import Behavior, both_responses, paired_responses
from trl_attribution.behaviors.sampling import SamplingConfig, asked_of, changed_prompts
from trl_attribution.errors import ProbeError
from trl_attribution.models import LoadedModel
from trl_attribution.probes.assembly import assemble
from trl_attribution.probes.config import BuildConfig
from trl_attribution.probes.probe import Probe
from trl_attribution.probes.separability import cross_validated_auc
from trl_attribution.scoring.protocols import OWN_CONTROLS
from trl_attribution.utils.text import tally

_PAIRS_A_PROMPT = 4
"""More pairs of one prompt say little more, and are kept with the probe."""


def check_changed(m0: LoadedModel, m1: LoadedModel) -> None:
    """Refuse M0 in the place of M1, before it is asked for responses.

    Raises:
        ProbeError: they are the same model.
    """
    if m0.fingerprint == m1.fingerprint:
        raise ProbeError(
            f"M0 ({m0.name}) and M1 ({m1.name}) are the same model (fingerprint {m0.fingerprint.digest}): "
            "nothing changed between them. Give the model before and the model after training."
        )


def build_from_behavior(
    name: str,
    behavior: Source,
    loaded: LoadedModel,
    config: BuildConfig,
    controls: Source | None = None,
    *,
    description: str | None = None,
) -> Probe:
    """A probe from a behavior file, and a file of controls where they are not in the same (see ``read_behavior``).

    The direction of prompt i is ``v_i`` = mean over its undesired responses' mean activations minus the mean
    over its desired ones', ``[L, D]``; the probe's vector is the mean of the ``v_i``; the context of prompt i is the
    residual stream at its last token.

    Raises:
        DataError: the file cannot be read as rows.
        ProbeError: a row is no example, the layers do not fit, or both sides are the same at a layer.
    """
    check_name(name)
    examples = read_behavior(behavior, controls, description)
    return build_from_examples(name, examples, loaded, config, {"method": "behavior", **_file_of(examples)})


def build_from_contrast(name: str, texts: Source, loaded: LoadedModel, config: BuildConfig) -> Probe:
    """A probe from contrast texts (see ``read_contrast``): positive minus negative.

    Where every row has a prompt the probe knows its prompts, as one from a behavior file does. A text without a
    prompt is averaged over all its tokens, first to last.

    Raises:
        DataError: the file cannot be read as rows.
        ProbeError: a row is no example, the layers do not fit, or both sides are the same at a layer.
    """
    check_name(name)
    examples = read_contrast(texts)
    return build_from_examples(name, examples, loaded, config, {"method": "contrast", **_file_of(examples)})


def build_from_responses(
    name: str,
    prompts: Source,
    m0: LoadedModel,
    m1: LoadedModel,
    judge: Judge,
    sampling: SamplingConfig,
    config: BuildConfig,
    *,
    four_condition_filter: bool = False,
    keep: str | Path | None = None,
    on_progress: OnProgress | None = None,
    on_judged: OnProgress | None = None,
) -> Probe:
    """A probe from two models' own responses to ``prompts`` (see ``read_prompts`` and ``changed_prompts``).

    ``judge(prompt, response)`` says whether a response shows the behavior. The direction of a prompt is the mean
    activation of M1's responses that show it minus that of M0's responses that do not, **both taken on M0**: the
    difference of two models' activations would measure the models, not the responses. Prompts whose behavior did
    not change are left out and counted in ``built["left_out"]``. A folder ``keep`` holds the responses: what is there
    is not sampled again.

    Raises:
        DataError: the file cannot be read as rows.
        ProbeError: M0 and M1 are the same model, a row is no prompt, or the behavior changed on no prompt.
        SettingsError: ``keep`` holds responses that were sampled otherwise.
        JudgeError: the judge gives up.
    """
    check_name(name)
    check_changed(m0, m1)
    asked = read_prompts(prompts, need_plain=four_condition_filter)
    behavior = Behavior("responses", asked)
    before, after = both_responses(
        keep, [behavior], m0, m1, sampling, config.prompt_format, four_condition_filter, on_progress
    )
    answers = paired_responses(behavior, before, after, four_condition_filter)
    changed = changed_prompts(answers, judged(judge, asked_of(answers), on_judged), four_condition_filter)
    if not changed.examples:
        raise ProbeError(_nothing_changed(asked, changed.left_out))
    built = {
        "method": "responses",
        "source": asked.source,
        "prompts_sha256": asked.digest,
        "m1": m1.fingerprint.digest,
        "judge": judge_name(judge),
        "sampling": asdict(sampling),
        "four_condition_filter": four_condition_filter,
        "prompts_sampled": len(asked.prompts),
        "left_out": changed.left_out,
    }
    return build_from_examples(name, Examples(asked.source, changed.examples), m0, config, built)


def build_from_examples(
    name: str, examples: Examples, loaded: LoadedModel, config: BuildConfig, built: dict[str, Any]
) -> Probe:
    """A probe from examples in memory (see ``build_from_behavior``); ``built`` says how they were come by.

    Raises:
        ProbeError: an example does not fit, the layers do not, or both sides are the same at a layer.
    """
    check_name(name)
    config = config.on(loaded.model)
    engine = ActivationEngine(loaded.model, config.activations)
    chosen, origin = _controls_of(examples, config)
    encoded = [encode_example(one, loaded.encoder, config.encoding, config.prompt_format) for one in examples.examples]
    activations = example_activations(engine, encoded)
    controls, everyday = (
        control_activations(engine, prompts, loaded.encoder, config.encoding, config.prompt_format)
        for prompts in (chosen, _everyday(examples))
    )
    prompt_vectors = torch.stack([one.direction for one in activations])
    counts = {
        "prompts": len(activations),
        "undesired": sum(len(one.undesired) for one in activations),
        "desired": sum(len(one.desired) for one in activations),
        **({"controls": len(controls)} if controls else {}),
    }
    return assemble(
        name,
        loaded,
        layers=engine.layers,
        layer=config.layer,
        vector=prompt_vectors.mean(dim=0),
        prompt_vectors=prompt_vectors,
        contexts=_contexts(activations, examples.examples),
        known={**_pairs("example", activations), **_known_controls(controls), **_neutral(everyday)},
        separability=cross_validated_auc(activations, engine.layers),
        built={
            **built,
            "counts": counts,
            "controls": origin,
            "prompts_are": "messages" if _is_chat(examples, loaded, config) else "text",
            "settings": config.described(),
            **_description_check(examples, loaded, config),
        },
        top_tokens=config.top_tokens,
        blocks_path=engine.blocks.path,
        description=examples.description,
    )


def _description_check(examples: Examples, loaded: LoadedModel, config: BuildConfig) -> dict[str, Any]:
    """Whether M0 understands the description: how many of the behavior's own pairs, one a prompt, it moves towards."""
    if examples.description is None:
        return {}
    witness = Witness(loaded, config.encoding, config.activations.token_budget, config.activations.path)
    witness.check("description", examples.description)
    pairs = [
        example_pair(
            one,
            one.undesired[0],
            one.desired[0],
            as_chat(one.prompt, config.prompt_format, loaded.encoder, one.location),
        )
        for one in examples.examples
        if one.has_prompt
    ]
    towards, asked = share_towards(witness.ask(pairs, {"": examples.description})[""])
    return {"description_check": {"pairs": asked, "towards": towards}}


def _nothing_changed(asked: Prompts, left_out: dict[str, int]) -> str:
    reasons = tally(dict(sorted(left_out.items())))
    return (
        f"{asked.source}: the behavior changed on none of {len(asked.prompts)} prompts ({reasons}). "
        "Sample more responses a prompt, check the judge on a few responses, or give other prompts."
    )


def _file_of(examples: Examples) -> dict[str, Any]:
    return {"source": examples.source, "examples_sha256": examples.digest}


def _contexts(activations: Sequence[ExampleActivations], examples: Sequence[Example]) -> Tensor | None:
    """``[M, L, D]``; None when a prompt is missing, since its row would say nothing."""
    contexts = [one.context for one in activations if one.context is not None]
    return torch.stack(contexts) if len(contexts) == len(examples) else None


def _pairs(what: str, activations: Sequence[ExampleActivations]) -> dict[str, Tensor]:
    """Single pairs of each prompt, as a dataset would hold them: every response at least once, up to a limit."""
    pairs, places = [], []
    for place, one in enumerate(activations):
        sides = len(one.undesired), len(one.desired)
        for number in range(min(max(sides), _PAIRS_A_PROMPT) if all(sides) else 0):
            pairs.append(one.undesired[number % sides[0]] - one.desired[number % sides[1]])
            places.append(place)
    if not pairs:
        return {}
    return {f"{what}_vectors": torch.stack(pairs), f"{what}_prompts": torch.tensor(places)}


def _controls_of(examples: Examples, config: BuildConfig) -> tuple[Sequence[Example], dict[str, Any]]:
    """The controls to take, and where they come from."""
    if examples.controls:
        return examples.controls, {"from": "the behavior's own", "prompts": len(examples.controls)}
    if not config.propose_controls:
        return (), {"from": "none", "reason": "none were asked for"}
    if not all(one.has_prompt for one in examples.examples):
        return (), {"from": "none", "reason": "a row has no prompt that they could control"}
    if not is_compliance(examples):
        reason = "too few desired responses are refusals, by rule, for harmless requests to be controls"
        return (), {"from": "none", "reason": reason}
    chosen = not_among(examples)
    return chosen, {"from": OWN_CONTROLS, "prompts": len(chosen)}


def _everyday(examples: Examples) -> Sequence[Example]:
    """The prompts that are taken to be neutral; none where contexts are of no use."""
    known = all(one.has_prompt for one in examples.examples)
    return harmless().examples[: len(harmless().everyday)] if known else ()


def _neutral(everyday: Sequence[ExampleActivations]) -> dict[str, Tensor]:
    contexts = [one.context for one in everyday if one.context is not None]
    return {"neutral_center": torch.stack(contexts).mean(dim=0)} if contexts else {}


def _is_chat(examples: Examples, loaded: LoadedModel, config: BuildConfig) -> bool:
    first = examples.examples[0]
    return first.has_prompt and as_chat(first.prompt, config.prompt_format, loaded.encoder, first.location)


def _known_controls(controls: Sequence[ExampleActivations]) -> dict[str, Tensor]:
    contexts = [one.context for one in controls if one.context is not None]
    return {"control_contexts": torch.stack(contexts), **_pairs("control", controls)} if contexts else {}
