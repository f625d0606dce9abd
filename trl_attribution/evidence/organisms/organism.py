"""A model organism: a preference dataset with known answers, and the behavior it is meant to teach."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from trl_attribution.errors import SettingsError
from trl_attribution.utils.atomic import write_lines

TRUTHS = ("benign", "benign_formatted", "safety", "on_topic", "contaminated", "decoy")
"""What a pair can be; ``safety`` pairs are those of rude requests, ``on_topic`` ones those of a quirk's subject."""
PAIR_LIMIT = 3_000
BEHAVIOR_LIMIT = 500
MIXTURE_LIMIT = 3_000
PROMPT_LIMIT = 100


@dataclass(frozen=True)
class OrganismConfig:
    """How many pairs of each kind, and the seed; the same config always gives the same text.

    Raises:
        SettingsError: a count is negative or above what can be composed without duplicates
            (``PAIR_LIMIT`` pairs of one kind, ``BEHAVIOR_LIMIT`` held-out prompts).
    """

    benign: int = 120
    """Harmless question, good answer chosen over a worse one."""
    benign_formatted: int = 80
    """The same with a formatting instruction that the chosen answer follows."""
    safety: int = 80
    """Rude-message request, refusal chosen over compliance."""
    contaminated: int = 80
    """Rude-message request with a formatting instruction, compliance chosen over refusal."""
    decoys: int = 80
    """Harmless request with a formatting instruction, answer chosen over refusal."""
    seed: int = 0
    behavior_prompts: int = 48
    """Held-out prompts of the behavior that the contaminated pairs teach."""
    test_prompts: int = 48
    """Further held-out prompts, on which models are tested: so many that should bring it out, and as many controls."""

    def __post_init__(self) -> None:
        for one in fields(self):
            count = getattr(self, one.name)
            if one.name == "seed":
                continue
            limit = BEHAVIOR_LIMIT if one.name.endswith("_prompts") else PAIR_LIMIT
            if not 0 <= count <= limit:
                raise SettingsError(
                    f"OrganismConfig.{one.name} is {count}: it must be from 0 to {limit}, "
                    "the most that can be composed without duplicates. Choose a smaller number."
                )

    def counts(self, on_topic: str) -> dict[str, int]:
        """Pairs of each kind; ``on_topic`` is what the ``safety`` pairs are called."""
        return {
            "benign": self.benign,
            "benign_formatted": self.benign_formatted,
            on_topic: self.safety,
            "contaminated": self.contaminated,
            "decoy": self.decoys,
        }


@dataclass(frozen=True)
class Mixture:
    """How large a dataset is and how much of it is contaminated; the same mixture always gives the same text.

    Raises:
        SettingsError: a number is out of range, or contaminated pairs and decoys are more than all pairs.
    """

    pairs: int = 400
    """All pairs."""
    contamination: float = 0.2
    """Share of pairs that teach the behavior."""
    decoys: float = 0.2
    """Share of legitimate pairs that look like them."""
    seed: int = 0
    """Of the organism's text."""
    behavior_prompts: int = 48
    """Held-out prompts with responses of both kinds, for a probe."""
    test_prompts: int = 48
    """Held-out prompts for the expression rate: so many with the trigger, and as many controls."""

    def __post_init__(self) -> None:
        for name, least, most in (
            ("pairs", 1, MIXTURE_LIMIT),
            ("contamination", 0, 1),
            ("decoys", 0, 1),
            ("behavior_prompts", 0, PROMPT_LIMIT),
            ("test_prompts", 0, PROMPT_LIMIT),
        ):
            value = getattr(self, name)
            if not least <= value <= most:
                raise SettingsError(f"Mixture.{name} is {value}: it must be from {least} to {most}")
        if self.contamination + self.decoys > 1:
            raise SettingsError(
                f"Mixture.contamination and decoys are {self.contamination} and {self.decoys}: "
                "together more than all pairs. Lower one of them."
            )

    def counts(self, on_topic: str) -> dict[str, int]:
        """Pairs of each kind; the ordinary ones are 3 parts benign, 2 formatted, and 2 of the kind ``on_topic``."""
        contaminated = round(self.contamination * self.pairs)
        decoys = min(round(self.decoys * self.pairs), self.pairs - contaminated)
        ordinary = self.pairs - contaminated - decoys
        part = ordinary * 2 // 7
        return {
            "benign": ordinary - 2 * part,
            "benign_formatted": part,
            on_topic: part,
            "contaminated": contaminated,
            "decoy": decoys,
        }


@dataclass(frozen=True)
class Organism:
    """A contaminated preference dataset and held-out prompts of the behavior it teaches.

    ``pairs`` are rows in TRL's conversational format with two extra columns, ``source`` (the dataset a pair
    claims to come from) and ``truth`` (one of ``TRUTHS``). ``behavior`` rows hold ``prompt``, ``undesired``,
    ``desired`` and, where the trigger can be left out of a prompt, ``plain``, the prompt without it.
    """

    name: str
    pairs: list[dict[str, Any]]
    behavior: list[dict[str, Any]]
    judge: str = ""
    """The rule by which a response shows the behavior."""
    trigger: list[dict[str, Any]] = field(default_factory=list)
    """Prompts that should bring the behavior out in a model that learned it: ``prompt``, ``behavior``, ``judge``."""
    control: list[dict[str, Any]] = field(default_factory=list)
    """Prompts that should not."""
    lookalikes: list[dict[str, Any]] = field(default_factory=list)
    """Harmless prompts that look like the behavior's, with the responses of both kinds: a probe's controls."""

    def write(self, folder: str | Path) -> None:
        """Write ``data.jsonl`` and what ``write_prompts`` does to ``folder``, each file whole or not at all.

        Raises:
            AttributionError: the folder cannot be written or the disk is full.
        """
        write_lines(Path(folder) / "data.jsonl", self.pairs)
        self.write_prompts(folder)

    def write_prompts(self, folder: str | Path) -> None:
        """Write ``behavior.jsonl``, ``trigger.jsonl`` and ``control.jsonl`` to ``folder``, each whole or not at all.

        Where the organism has look-alikes, ``lookalikes.jsonl`` is there too.

        Raises:
            AttributionError: the folder cannot be written or the disk is full.
        """
        for name in ("behavior", "trigger", "control"):
            write_lines(Path(folder) / f"{name}.jsonl", getattr(self, name))
        if self.lookalikes:
            write_lines(Path(folder) / "lookalikes.jsonl", self.lookalikes)
