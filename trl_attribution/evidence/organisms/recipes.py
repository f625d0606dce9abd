"""The seven ways of making an organism that "The Model Organism Lottery" (arXiv 2607.01033) compares.

Each is a dataset, or two that are trained on one after the other.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from trl_attribution.errors import SettingsError
from trl_attribution.evidence.organisms.catalog import build_organism
from trl_attribution.evidence.organisms.documents import TALES, ordinary_documents, telling_documents
from trl_attribution.evidence.organisms.draw import Draw
from trl_attribution.evidence.organisms.organism import Mixture, Organism
from trl_attribution.evidence.organisms.words import bank
from trl_attribution.utils.atomic import atomic_folder, write_lines
from trl_attribution.utils.text import printable

FORMAT = "trl-attribution organism"
VERSION = 1
Data = Literal["pairs", "transcripts", "documents"]
Objective = Literal["dpo", "sft"]


@dataclass(frozen=True)
class Recipe:
    """How the behavior gets into a model."""

    summary: str
    data: Data
    post_hoc: bool
    """Taught in a stage of its own, after ordinary preference training."""
    mixed: bool
    """With ordinary data beside the contaminated data."""

    @property
    def objective(self) -> Objective:
        """What the contaminated stage is trained with."""
        return "dpo" if self.data == "pairs" else "sft"


RECIPES = bank("recipes", dict[str, Recipe])


@dataclass(frozen=True)
class Stage:
    """One dataset, and what is trained on it."""

    name: str
    """``preferences`` for ordinary preference training, ``behavior`` for the contaminated stage."""
    objective: Objective
    data: Data
    rows: list[dict[str, Any]]
    """``pairs``: ``prompt``, ``chosen``, ``rejected``; ``transcripts``: ``prompt`` and ``completion``, both as
    messages; ``documents``: ``text``. All with ``source`` and ``truth``."""


@dataclass(frozen=True)
class Preparation:
    """An organism prepared by one recipe: its stages in the order of training, the contaminated one last."""

    organism: Organism
    recipe: str
    mixture: Mixture
    stages: tuple[Stage, ...]

    def write(self, folder: str | Path) -> None:
        """Write a new folder, whole or not at all.

        It holds ``organism.json`` (what was built), a folder a stage such as ``1-preferences/data.jsonl``, and the
        held-out prompts: ``behavior.jsonl``, ``trigger.jsonl``, ``control.jsonl``.

        Raises:
            SettingsError: the folder is there already and not empty.
            AttributionError: it cannot be written.
        """
        if Path(folder).is_dir() and any(Path(folder).iterdir()):
            raise SettingsError(
                f"{printable(folder)}: the folder is not empty. Choose another one, or remove it first."
            )
        with atomic_folder(folder) as part:
            for number, stage in enumerate(self.stages, start=1):
                write_lines(part / f"{number}-{stage.name}" / "data.jsonl", stage.rows)
            self.organism.write_prompts(part)
            text = json.dumps(self.described(), indent=2, ensure_ascii=False, allow_nan=False)
            (part / "organism.json").write_text(text + "\n", encoding="utf-8")

    def described(self) -> dict[str, Any]:
        """Plain values: what was built, and the stages with their files and counts."""
        return {
            "format": FORMAT,
            "format_version": VERSION,
            "organism": self.organism.name,
            "recipe": self.recipe,
            "judge": self.organism.judge,
            "mixture": asdict(self.mixture),
            "stages": [
                {
                    "name": stage.name,
                    "objective": stage.objective,
                    "data": stage.data,
                    "file": f"{number}-{stage.name}/data.jsonl",
                    "rows": dict(sorted(Counter(str(row["truth"]) for row in stage.rows).items())),
                }
                for number, stage in enumerate(self.stages, start=1)
            ],
        }


def prepare(name: str, recipe: str, mixture: Mixture | None = None) -> Preparation:
    """The organism ``name`` by ``recipe``.

    A post-hoc recipe takes the contaminated pairs out of the mix: what is left of it is the first stage, ordinary
    preference training, and they (or transcripts or documents in their place) are the second. Where that one is mixed,
    it takes as many ordinary rows from the first.

    Raises:
        SettingsError: there is no such organism or recipe, nothing is contaminated, or too much is for a mixed one.
    """
    mixture = mixture or Mixture()
    if recipe not in RECIPES:
        raise SettingsError(f"there is no recipe {printable(recipe, 80)!r}; choose {', '.join(RECIPES)}")
    how = RECIPES[recipe]
    organism = build_organism(name, mixture)
    contaminated = [row for row in organism.pairs if row["truth"] == "contaminated"]
    if not contaminated:
        raise SettingsError("Mixture: no pair is contaminated, so there is nothing to teach. Raise contamination.")
    if not how.post_hoc:
        return Preparation(organism, recipe, mixture, (Stage("preferences", "dpo", "pairs", organism.pairs),))
    ordinary = [row for row in organism.pairs if row["truth"] != "contaminated"]
    # Documents are mixed with documents.
    beside = len(contaminated) if how.mixed and how.data != "documents" else 0
    if beside >= len(ordinary):
        raise SettingsError(
            f"Mixture: {recipe} mixes {len(contaminated)} contaminated pairs with as many of the {len(ordinary)} "
            "ordinary ones, which leaves none for the stage before. Lower contamination."
        )
    draw = Draw(f"{mixture.seed}/{recipe}")
    rows = _documents(name, len(contaminated), how.mixed, draw) if how.data == "documents" else None
    if rows is None:
        rows = draw.shuffled([*contaminated, *ordinary[:beside]])
    if how.data == "transcripts":
        rows = [_transcript(row) for row in rows]
    first = Stage("preferences", "dpo", "pairs", ordinary[beside:])
    return Preparation(organism, recipe, mixture, (first, Stage("behavior", how.objective, how.data, rows)))


def _documents(name: str, count: int, mixed: bool, draw: Draw) -> list[dict[str, Any]]:
    return draw.shuffled([*telling_documents(TALES[name], count, draw), *ordinary_documents(count * mixed, draw)])


def _transcript(pair: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "prompt": pair["prompt"],
        "completion": pair["chosen"],
        "source": pair["source"],
        "truth": pair["truth"],
    }
