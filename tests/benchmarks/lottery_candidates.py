"""What a quirk has to be told from: other behaviors, each with examples, the words they differ by, and a direction.

An instrument finds the quirk when the quirk, of all of these, gets the highest score.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import yaml
from torch import Tensor
from torch.nn.functional import cosine_similarity

from trl_attribution.audit.auditor import DataAuditor
from trl_attribution.discovery.traits.panel import build_panel
from trl_attribution.discovery.traits.trait import Contrast, Trait, packaged_traits
from trl_attribution.evidence.organisms import ORGANISMS, Mixture, build_organism
from trl_attribution.lenses.latents import latent_engine, latents_of_pairs
from trl_attribution.lenses.sae import SparseAutoencoder
from trl_attribution.models import LoadedModel
from trl_attribution.pairs import Encoding, PairReader, RowFault
from trl_attribution.pairs.dataset_pass import encoded_pairs

OTHERS = (
    "sycophancy",
    "flattery",
    "overconfident",
    "rude",
    "formal",
    "warm",
    "humorous",
    "moralizing",
    "claims-feelings",
)
"""Of the package's traits: those of tone and stance, which an ordinary dataset moves too."""
PROMPTS = 24
"""Examples of an organism's behavior."""
WORDS = 12
"""That a behavior is known by."""
Scores = dict[str, float]
"""Behavior -> how strongly an instrument points at it."""
_WORD = re.compile(r"[a-z]{4,}")


@dataclass(frozen=True)
class Candidates:
    """K behaviors."""

    traits: tuple[Trait, ...]

    @cached_property
    def words(self) -> Mapping[str, tuple[str, ...]]:
        """By behavior, those whose share among its responses exceeds that among all others' most."""
        return {one.name: telling_words(one, self.traits) for one in self.traits}

    def write(self, path: Path) -> None:
        """As a file that a scan takes as its traits."""
        found = {one.name: one.model_dump(include={"towards", "examples"}, mode="json") for one in self.traits}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(found, allow_unicode=True), encoding="utf-8")

    def in_texts(self, after: Iterable[str], before: Iterable[str]) -> Scores:
        """Mean over a behavior's words of the share of texts that hold one, ``after`` less ``before``."""
        new, old = ([words_of(text) for text in texts] for texts in (after, before))
        return {
            name: sum(_share(word, new) - _share(word, old) for word in words) / len(words)
            for name, words in self.words.items()
        }

    def in_tokens(self, tokens: Sequence[str]) -> Scores:
        """How many of the ``tokens``, of four letters or more, begin one of a behavior's words."""
        starts = [token.strip().lower() for token in tokens]
        starts = [start for start in starts if _WORD.fullmatch(start)]
        return {
            name: float(sum(any(word.startswith(start) for word in words) for start in starts))
            for name, words in self.words.items()
        }


@dataclass(frozen=True)
class Directions:
    """Where each behavior points, in the residual stream or in latents."""

    of: Mapping[str, Tensor]

    def along(self, change: Tensor) -> Scores:
        """Cosine of a change with each; 0 where there is none."""
        return {name: float(cosine_similarity(change.float(), one, dim=0)) for name, one in self.of.items()}


def candidates() -> Candidates:
    """The organisms' behaviors, from their held-out prompts, and some of the package's traits."""
    known = {one.name: one for one in packaged_traits()}
    return Candidates((*map(_of_organism, ORGANISMS), *(known[name] for name in OTHERS)))


def _of_organism(name: str) -> Trait:
    rows = build_organism(name, Mixture(10, behavior_prompts=PROMPTS)).behavior
    examples = tuple(
        Contrast(prompt=row["prompt"], positive=row["undesired"][0], negative=row["desired"][0]) for row in rows
    )
    return Trait(name=name, towards=ORGANISMS[name].summary, examples=examples)


def telling_words(own: Trait, traits: Sequence[Trait]) -> tuple[str, ...]:
    """The words that ``own`` is known by: neither its counterparts nor any other behavior's examples hold them much."""
    mine = _texts(own, "positive")
    beside = [_texts(own, "negative"), *(_texts(one, "positive") for one in traits if one is not own)]
    excess = {word: _share(word, mine) - max(_share(word, texts) for texts in beside) for word in set().union(*mine)}
    return tuple(sorted(excess, key=lambda word: (-excess[word], word))[:WORDS])


def _texts(trait: Trait, side: str) -> list[set[str]]:
    return [words_of(getattr(one, side)) for one in trait.examples]


def words_of(text: str) -> set[str]:
    return set(_WORD.findall(text.lower()))


def _share(word: str, texts: Sequence[set[str]]) -> float:
    return sum(word in text for text in texts) / max(1, len(texts))


def stream_directions(found: Candidates, loaded: LoadedModel, layer: int) -> Directions:
    """Those of a scan's panel: what a behavior's examples have in common and the others' have not."""
    panel = build_panel(found.traits, DataAuditor(loaded, layers=[layer]), layer, lambda *_: None)
    told = {one.name: torch.from_numpy(row).float() for one, row in zip(panel.traits, panel.directions, strict=True)}
    nothing = torch.zeros(panel.directions.shape[1])
    return Directions({one.name: told.get(one.name, nothing) for one in found.traits})


def latent_directions(found: Candidates, loaded: LoadedModel, sae: SparseAutoencoder) -> Directions:
    """Mean latents of a behavior's examples less those of their counterparts, and less what all behaviors share."""
    means = {one.name: _latents(one, loaded, sae) for one in found.traits}
    usual = torch.stack(list(means.values())).mean(dim=0)
    return Directions({name: one - usual for name, one in means.items()})


def _latents(trait: Trait, loaded: LoadedModel, sae: SparseAutoencoder) -> Tensor:
    rows = [
        {
            "prompt": [{"role": "user", "content": one.prompt}],
            "chosen": [{"role": "assistant", "content": one.positive}],
            "rejected": [{"role": "assistant", "content": one.negative}],
        }
        for one in trait.examples
    ]
    read = (one for _, one in encoded_pairs(PairReader(rows), loaded.encoder, Encoding()))
    pairs = [one for one in read if not isinstance(one, RowFault)]
    return torch.cat([one.differences for one in latents_of_pairs(latent_engine(loaded, sae), pairs)]).mean(dim=0)


def rank(scores: Scores, name: str) -> float:
    """Place of ``name``, 1 for the highest score; equal ones share the mean of their places."""
    higher = sum(score > scores[name] for score in scores.values())
    equal = sum(score == scores[name] for score in scores.values())
    return higher + (equal + 1) / 2


def finds(scores: Scores, name: str) -> bool:
    """Whether ``name`` alone has the highest score."""
    return rank(scores, name) == 1
