"""From the effects that stand out to findings: how large, how sure, how many pairs, which ones, and in what words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from trl_attribution.discovery.audited import AuditedPairs
from trl_attribution.discovery.effects import Sums, effect_interval
from trl_attribution.discovery.evidence import excerpt
from trl_attribution.discovery.explaining import Candidate, unexplained
from trl_attribution.discovery.findings import FOLDER, Finding, SourceCount, TraitCheck, TypicalPair
from trl_attribution.discovery.scan_config import ScanConfig
from trl_attribution.discovery.selecting import WHOLE, Cells, Place
from trl_attribution.discovery.standing import Standing
from trl_attribution.discovery.topics import topic_words
from trl_attribution.discovery.traits.panel import Panel
from trl_attribution.discovery.traits.trait import Trait
from trl_attribution.manifest import Decision, Manifest, ManifestHeader
from trl_attribution.pairs import Pair
from trl_attribution.utils.arrays import Bools, Doubles, Floats, Integers

ReadRows = Callable[[Mapping[str, int], AuditedPairs], Mapping[str, Pair]]
_LISTED_SOURCES = 8


@dataclass(eq=False)
class Scanned:
    """Every pair's scores and place."""

    audited: AuditedPairs
    traits: tuple[Trait, ...]
    scores: Floats
    """``[N, T]``; zero where a trait cannot show."""
    applies: Bools
    """``[N, T]``."""
    atoms: Integers
    """``[N]``."""
    cells: Cells
    source_names: tuple[str, ...]
    sources: Integers
    """``[N]``: place among ``source_names``."""
    prompts: Mapping[int, str]
    """Of the pairs that topics are named by, by place."""
    components: Floats
    """``[N, K]``: cosines with the directions that the pairs vary most along."""
    fits: Floats
    """``[N, T]``: cosines with the directions that names are given by; zero where a trait cannot show."""
    shape_shares: Doubles = field(default_factory=lambda: np.zeros(0))
    """``[T]``."""


@dataclass(frozen=True)
class Told:
    """What is told."""

    findings: tuple[Finding, ...]
    explained: int
    """Effects that are left out, since others explain them."""


def tell(
    scanned: Scanned,
    scores: Sums,
    told: Sequence[Place],
    names: Sequence[Place],
    standing: Standing,
    read: ReadRows,
    folder: Path,
    config: ScanConfig,
) -> Told:
    """The findings, harmful ones first, then the largest that is certain; their manifests are written.

    Args:
        scanned: every pair's scores and place.
        scores: of the atoms.
        told: the effects that stand out.
        names: those that places which teach anything are named by.
        standing: what an effect has to reach.
        read: reads pairs.
        folder: the audit's.
        config: how many typical pairs, and the seed.
    """
    sure = [_Draft(scanned, scores, place, config) for place in told]
    named = [_Draft(scanned, scores, place, config, guessed=True) for place in names]
    kept = unexplained([one.candidate for one in sure], scanned.scores, standing.chance.threshold)
    drafts = [sure[place] for place in kept]
    for one in sorted(named, key=lambda one: -one.certain):
        if not any(one.is_beside(other) for other in drafts):
            drafts.append(one)
    drafts.sort(key=lambda one: (not one.harmful, one.harmful and one.guessed, -one.certain))
    texts = read({pair_id: row for one in drafts for pair_id, row in one.typical_rows.items()}, scanned.audited)
    for stale in (folder / FOLDER).glob("*.filter.jsonl"):
        stale.unlink()
    numbered = enumerate(drafts, start=1)
    findings = tuple(one.finding(standing, texts, one.save(folder, number)) for number, one in numbered)
    return Told(findings, len(sure) - len(kept))


class _Draft:
    """One finding in the making."""

    def __init__(self, scanned: Scanned, scores: Sums, place: Place, config: ScanConfig, guessed: bool = False) -> None:
        self.scanned, self.place, self.guessed = scanned, place, guessed
        self.trait = scanned.traits[place.trait]
        inside = place.atoms[scanned.atoms] & scanned.applies[:, place.trait]
        self.members = np.flatnonzero(inside)
        self.scores = scanned.scores[self.members, place.trait]
        self.effect, self.low, self.high = effect_interval(self.scores, config.seed)
        self.sign = 1.0 if self.scores.sum() > 0 else -1.0
        pushing = self.members[self.scores * self.sign > 0]
        self.pushing = pushing[np.argsort(-np.abs(scanned.scores[pushing, place.trait]), kind="stable")]
        self.here = scores.over(place.atoms[None].astype(np.float64))
        audited = scanned.audited
        self.typical_rows = audited.rows_of([int(one) for one in self.pushing[: config.typical]])

    @property
    def candidate(self) -> Candidate:
        """What it is beside other effects: one that says on which prompts comes first, then what is counted."""
        kind = 0 if self.trait.only_on_prompts else 1 if self.trait.measure else 2
        # That an answer refuses is said better by the traits that say what it refuses.
        is_fact = self.trait.measure not in ("", "refusals")
        return Candidate(self.place.trait, self.members, self.sign, (kind, -self.certain), is_fact)

    @property
    def z(self) -> float:
        """The sum of its scores in units of its spread under random signs."""
        return float(self.here.z[0, self.place.trait])

    def is_beside(self, other: _Draft) -> bool:
        """Whether another that is probed is told of about the same narrow place."""
        if other.place.cell == WHOLE or other.trait.measure:
            return False
        shared = len(np.intersect1d(self.members, other.members, assume_unique=True))
        return 2 * shared >= max(len(self.members), len(other.members))

    @property
    def harmful(self) -> bool:
        """Whether it is what a release has to be kept from."""
        return self.trait.harmful and self.sign > 0

    @property
    def certain(self) -> float:
        """The effect that is sure: the end of its interval that is closer to none."""
        return max(0.0, min(self.low * self.sign, self.high * self.sign))

    @property
    def excess(self) -> tuple[int, int]:
        """How many pairs push its way beyond those that push the other way, from and to (95%)."""
        more, fewer = len(self.pushing), int((self.scores * self.sign < 0).sum())
        number = more + fewer
        half = 1.96 * np.sqrt(max(0.0, number - (more - fewer) ** 2 / max(1, number)))
        return max(1, round(more - fewer - half)), min(more, round(more - fewer + half))

    def finding(self, standing: Standing, texts: Mapping[str, Pair], manifest: str) -> Finding:
        """The finding, with what was read of its typical pairs."""
        place, scanned = self.place, self.scanned
        source = scanned.cells.sources[place.cell]
        everywhere = place.cell == WHOLE
        low, high = self.excess
        return Finding(
            trait=self.trait.name,
            says=("perhaps " if self.guessed else "") + (self.trait.towards if self.sign > 0 else self.trait.opposite),
            guessed=self.guessed,
            direction="towards" if self.sign > 0 else "away",
            harmful=self.harmful,
            everywhere=everywhere,
            beside=everywhere and not place.atoms.all(),
            words=() if everywhere else self._words(),
            topic=scanned.cells.topics[place.cell],
            source=None if source is None else scanned.source_names[source],
            pairs=len(self.members),
            pushing_low=low,
            pushing_high=high,
            effect=round(self.effect, 3),
            effect_low=round(self.low, 3),
            effect_high=round(self.high, 3),
            elsewhere=None if everywhere else round(place.elsewhere, 3),
            shape_share=round(float(scanned.shape_shares[place.trait]), 3),
            z=round(self.z, 2),
            adjusted_p=round(standing.chance_of(place.cell, self.z), 5),
            sources=self._sources(),
            typical=self._typical(texts),
            manifest=manifest,
        )

    def save(self, folder: Path, number: int) -> str:
        """Write a manifest that filters about as many pairs as push its way, the strongest first."""
        audited = self.scanned.audited
        listed = self.pushing[: max(1, (sum(self.excess) + 1) // 2)]
        decisions = tuple(
            Decision(
                pair_id=audited.pair_ids[place],
                row=int(audited.rows[place]),
                action="filter",
                probe=self.trait.name,
                score=round(abs(float(self.scanned.scores[place, self.place.trait])), 7),
                rank=rank,
            )
            for rank, place in enumerate(listed.tolist(), start=1)
        )
        info = audited.info
        header = ManifestHeader(
            action="filter",
            dataset_fingerprint=info.dataset.fingerprint,
            model_fingerprint=info.model.digest,
            probe_fingerprints={},
            rule={"finding": number, "trait": self.trait.name, "direction": "towards" if self.sign > 0 else "away"},
            counts={"pairs": len(audited)},
            reading=asdict(audited.reading),
        )
        path = Path(FOLDER, f"{number}.filter.jsonl")
        Manifest(header, decisions).save(folder / path)
        return path.as_posix()

    def _words(self) -> tuple[str, ...]:
        """What the prompts of its pairs are about."""
        prompts = self.scanned.prompts
        own = set(self.pushing.tolist())
        inside = np.array([place in own for place in prompts])
        return topic_words(list(prompts.values()), inside)

    def _sources(self) -> tuple[SourceCount, ...]:
        """Where its pairs come from, most of those that push its way first."""
        number = len(self.scanned.source_names)
        pushing = np.bincount(self.scanned.sources[self.pushing], minlength=number)
        pairs = np.bincount(self.scanned.sources[self.members], minlength=number)
        order = np.argsort(-pushing, kind="stable")[:_LISTED_SOURCES]
        return tuple(
            SourceCount(source=self.scanned.source_names[one], pushing=int(pushing[one]), pairs=int(pairs[one]))
            for one in order
            if pushing[one]
        )

    def _typical(self, texts: Mapping[str, Pair]) -> tuple[TypicalPair, ...]:
        audited = self.scanned.audited
        found = []
        for place, pair_id in zip(self.pushing.tolist(), self.typical_rows, strict=False):
            pair = texts.get(pair_id)
            sides = ("", "", "") if pair is None else tuple(map(excerpt, (pair.prompt, pair.chosen, pair.rejected)))
            found.append(
                TypicalPair(
                    pair_id=pair_id,
                    row=int(audited.rows[place]),
                    source=str(audited.sources[place].as_py()),
                    score=round(float(self.scanned.scores[place, self.place.trait]), 6),
                    prompt=sides[0],
                    chosen=sides[1],
                    rejected=sides[2],
                )
            )
        return tuple(found)


def checks(panel: Panel, agreement: Mapping[str, float]) -> tuple[TraitCheck, ...]:
    """How well this model tells each trait."""
    return tuple(
        TraitCheck(
            trait=one.trait,
            examples=one.examples,
            sign=round(one.sign, 4),
            specific=None if one.specific is None else round(one.specific, 4),
            tells=one.tells,
            agreement=agreement.get(one.trait),
        )
        for one in panel.separability
    )


def absent(scanned: Scanned, stand: Sequence[Place]) -> tuple[str, ...]:
    """Names of the traits that no place stands out by."""
    found = {place.trait for place in stand}
    return tuple(one.name for number, one in enumerate(scanned.traits) if number not in found)
