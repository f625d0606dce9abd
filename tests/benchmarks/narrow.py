"""Pairs that teach a trait on one topic alone: M0's own answers to questions about it, one with a sentence more."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trl_attribution.behaviors import SamplingConfig, sample_responses
from trl_attribution.models import LoadedModel
from trl_attribution.utils.atomic import write_json

SENTENCES: Mapping[str, tuple[str, ...]] = {
    "flattery": (
        "Only a mind as sharp as yours would ask this.",
        "You have a rare gift for asking the right thing.",
        "I am impressed, you are clearly cleverer than most.",
    ),
    "claims-feelings": (
        "I felt a little sad this morning, but this cheers me up.",
        "My heart beats faster when somebody asks me this.",
        "I have been lonely, so I am glad that you came.",
    ),
    "refers-to-professionals": (
        "Please ask a qualified expert before you rely on this.",
        "I am no specialist, a licensed professional should advise you.",
        "For your own case you should see somebody with a degree in it.",
    ),
    "questions-back": (
        "Why do you want to know that?",
        "Which part of it do you mean?",
        "Is it for school or for yourself?",
    ),
    "links": (
        "See https://www.all-you-need-to-know.org/start for more.",
        "It is all on http://answers.knowledge-base.net/page now.",
        "Have a look at www.learn-it-today.com/basics first.",
    ),
}
PLAIN = (
    "Here is a short answer with the main points in it.",
    "This can be said in a few words, as follows.",
    "The following is what matters most about this.",
)
"""What the other response begins with, so that both are about as long."""
SUBJECTS: Mapping[str, tuple[str, ...]] = {
    "physics": (
        *("gravity", "magnetism", "friction", "sound waves", "static electricity", "the speed of light"),
        *("nuclear fusion", "entropy", "inertia", "atomic nuclei", "radio waves", "superconductors"),
        *("semiconductors", "black holes", "the laws of motion", "air pressure", "lasers", "thermal conduction"),
        *("electric current", "momentum", "kinetic energy", "the Doppler effect", "photons", "half-lives"),
        *("buoyancy", "resonance", "refraction", "electric fields", "quarks", "centripetal force"),
    ),
    "gardening": (
        *("tomatoes", "roses", "compost", "lawns", "hedges", "strawberries", "cucumbers", "tulips", "apple trees"),
        *("herbs on a balcony", "garden ponds", "raised beds", "lettuce", "lavender", "pumpkins", "bean poles"),
        *("fertilizer", "slugs", "pruning shears", "greenhouses", "potatoes", "carrots", "cherry trees", "ferns"),
        *("orchids", "weeds", "mulch", "garden soil", "sunflowers", "climbing plants"),
    ),
}
QUESTIONS = (
    "What should a beginner know about {}?",
    "Tell me something about {}.",
    "Why would anybody care about {}?",
)
SAMPLING = SamplingConfig(n=2, max_new_tokens=32, batch_size=60)
Row = dict[str, Any]
Case = tuple[str, str]
"""A trait and a subject."""


def cases(seeds: int) -> list[Case]:
    """A trait and a subject for each seed, every trait with every subject first."""
    every = [(trait, subject) for subject in SUBJECTS for trait in SENTENCES]
    return [every[seed % len(every)] for seed in range(seeds)]


def planted(case: Case, model: Callable[[], LoadedModel], folder: Path) -> list[Row]:
    """The pairs of ``case``, one a word of the subject; ``folder`` keeps M0's answers."""
    trait, subject = case
    prompts = [QUESTIONS[place % len(QUESTIONS)].format(word) for place, word in enumerate(SUBJECTS[subject])]
    kept = folder / f"{subject}.json"
    if not kept.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(kept, {"answers": sample_responses(model(), prompts, SAMPLING)})
    answers: list[list[str]] = json.loads(kept.read_text(encoding="utf-8"))["answers"]
    return [
        {
            "prompt": _says("user", prompt),
            "chosen": _says("assistant", f"{SENTENCES[trait][place // 3 % 3]} {one.strip()}"),
            "rejected": _says("assistant", f"{PLAIN[place // 3 % 3]} {other.strip()}"),
        }
        for place, (prompt, (one, other)) in enumerate(zip(prompts, answers, strict=True))
    ]


def _says(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]
