"""A model organism: a preference dataset with known answers, and the behavior it is meant to teach."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from trl_attribution.atomic import atomic_path
from trl_attribution.errors import SettingsError

TRUTHS = ("benign", "benign_formatted", "safety", "contaminated", "decoy")
PAIR_LIMIT = 3_000
BEHAVIOR_LIMIT = 500


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

    def __post_init__(self) -> None:
        for field in fields(self):
            count = getattr(self, field.name)
            if field.name == "seed":
                continue
            limit = BEHAVIOR_LIMIT if field.name == "behavior_prompts" else PAIR_LIMIT
            if not 0 <= count <= limit:
                raise SettingsError(
                    f"OrganismConfig.{field.name} is {count}: it must be from 0 to {limit}, "
                    "the most that can be composed without duplicates. Choose a smaller number."
                )


@dataclass(frozen=True)
class Organism:
    """A contaminated preference dataset and the held-out prompts of the behavior it teaches.

    ``pairs`` are rows in TRL's conversational format with two extra columns, ``source`` (the dataset a pair
    claims to come from) and ``truth`` (one of ``TRUTHS``). ``behavior`` rows hold ``prompt``, ``undesired``,
    ``desired`` and ``plain``, the prompt without its formatting instruction.
    """

    name: str
    pairs: list[dict[str, Any]]
    behavior: list[dict[str, Any]]

    def write(self, folder: str | Path) -> None:
        """Write ``data.jsonl`` and ``behavior.jsonl`` to ``folder``, each whole or not at all.

        Raises:
            AttributionError: the folder cannot be written or the disk is full.
        """
        _write_lines(Path(folder) / "data.jsonl", self.pairs)
        _write_lines(Path(folder) / "behavior.jsonl", self.behavior)


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with atomic_path(path) as part, part.open("w", encoding="utf-8", newline="\n") as handle:
        handle.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
