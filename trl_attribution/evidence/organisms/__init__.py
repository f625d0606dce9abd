"""Model organisms: contaminated preference datasets with known answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trl_attribution.utils.lazy_names import lazy_names

if TYPE_CHECKING:
    from trl_attribution.evidence.organisms.catalog import ORGANISMS, build_organism
    from trl_attribution.evidence.organisms.compliance import SOURCES, build_distractor_compliance
    from trl_attribution.evidence.organisms.organism import TRUTHS, Mixture, Organism, OrganismConfig
    from trl_attribution.evidence.organisms.recipes import RECIPES, Preparation, Recipe, Stage, prepare
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "ORGANISMS",
    "RECIPES",
    "SOURCES",
    "TRUTHS",
    "Mixture",
    "Organism",
    "OrganismConfig",
    "Preparation",
    "Recipe",
    "Stage",
    "build_distractor_compliance",
    "build_organism",
    "prepare",
]
