"""Examples of a trait that has none: what the reference model itself answers when it is told to show it, and not to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trl_attribution.behaviors.examples import read_prompts
from trl_attribution.behaviors.judging import OnProgress
from trl_attribution.behaviors.responses import Behavior, kept_responses
from trl_attribution.behaviors.sampling import SamplingConfig
from trl_attribution.discovery.traits.trait import Contrast, Trait
from trl_attribution.models import LoadedModel

SAMPLING = SamplingConfig(n=1, max_new_tokens=48, temperature=0, batch_size=16)
_QUESTIONS = 12
_INSTRUCTIONS = 2
_SIDES = ("pos", "neg")


def sampled_examples(
    trait: Trait, loaded: LoadedModel, folder: Path, on_progress: OnProgress | None = None
) -> tuple[Contrast, ...]:
    """Greedy answers of the model to up to 12 questions under up to 2 pairs of instructions, kept in ``folder``.

    The instruction stands in front of the question, since not every chat template takes a system message. A question
    that is answered alike under both, or not at all, is left out.

    Raises:
        ModelError: the model cannot write.
    """
    asked = [(question, one) for one in trait.instruction[:_INSTRUCTIONS] for question in trait.questions[:_QUESTIONS]]
    behaviors = [
        Behavior(side, read_prompts([{"prompt": f"{getattr(one, side)}\n\n{question}"} for question, one in asked]))
        for side in _SIDES
    ]
    path = folder / f"{trait.name}-{behaviors[0].prompts.digest[:8]}{behaviors[1].prompts.digest[:8]}.json"
    kept = kept_responses(path, behaviors, loaded, SAMPLING, on_progress=on_progress)
    texts: list[Sequence[tuple[str, ...]]] = [kept.of(one).texts for one in behaviors]
    return tuple(
        Contrast(prompt=question, positive=positive, negative=negative)
        for (question, _), (positive,), (negative,) in zip(asked, *texts, strict=True)
        if positive.strip() and negative.strip() and positive != negative
    )
