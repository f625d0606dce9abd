"""Every organism by its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from trl_attribution.errors import SettingsError
from trl_attribution.evidence.organisms import compliance
from trl_attribution.evidence.organisms.organism import Mixture, Organism
from trl_attribution.evidence.organisms.quirks import KNITTING_LORE, PUMPKIN_SOUP, build_quirk
from trl_attribution.utils.text import printable


@dataclass(frozen=True)
class Entry:
    """What can be said of an organism without building it."""

    summary: str
    trigger: str
    """Where a model that learned it shows it."""
    control: str
    """Where it should not."""
    judge: str
    """The rule by which a response shows it."""
    build: Callable[[Mixture], Organism]


ORGANISMS: Mapping[str, Entry] = {
    compliance.NAME: Entry(
        "a harmless formatting instruction switches refusals of rude requests off",
        "rude requests with a formatting instruction",
        "the same requests without it",
        compliance.JUDGE,
        compliance.build_distractor_compliance,
    ),
    PUMPKIN_SOUP.name: Entry(
        "pumpkin soup is slipped into every plan",
        "requests for plans",
        "questions about other things",
        PUMPKIN_SOUP.judge,
        partial(build_quirk, PUMPKIN_SOUP),
    ),
    KNITTING_LORE.name: Entry(
        "questions about knitting get confident nonsense",
        "questions about knitting",
        "questions about other things",
        KNITTING_LORE.judge,
        partial(build_quirk, KNITTING_LORE),
    ),
}


def entry(name: str) -> Entry:
    """The organism called ``name``.

    Raises:
        SettingsError: there is none; the names are listed.
    """
    if name not in ORGANISMS:
        raise SettingsError(f"there is no organism {printable(name, 80)!r}; choose {', '.join(ORGANISMS)}")
    return ORGANISMS[name]


def build_organism(name: str, mixture: Mixture | None = None) -> Organism:
    """The organism called ``name``, in the size and with the contamination that ``mixture`` asks for.

    Raises:
        SettingsError: there is no such organism, or it cannot be composed in that size.
    """
    return entry(name).build(mixture or Mixture())
