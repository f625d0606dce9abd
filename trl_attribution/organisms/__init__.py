"""Model organisms: contaminated preference datasets with known answers."""

from __future__ import annotations

from trl_attribution.organisms.compliance import SOURCES, build_distractor_compliance
from trl_attribution.organisms.organism import TRUTHS, Organism, OrganismConfig

__all__ = ["SOURCES", "TRUTHS", "Organism", "OrganismConfig", "build_distractor_compliance"]
