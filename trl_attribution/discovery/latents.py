"""Which latents of a sparse autoencoder chosen responses raise over rejected ones, and where: beside the traits.

The same sums, places and null as for traits; a latent's score on a pair is its mean over the tokens of the chosen
response minus that over the rejected one's.

Axis letters: N pairs read, A leaf topics, T latents that are looked at, F all latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trl_attribution.discovery.effects import Chance, Sums, by_chance, effect_interval, highest_by_chance
from trl_attribution.discovery.effects import without_shape as rest_without_shape
from trl_attribution.discovery.findings import LatentFinding, Latents
from trl_attribution.discovery.scan_config import ScanConfig
from trl_attribution.discovery.selecting import WHOLE, Cells, Place, places
from trl_attribution.discovery.telling import ReadRows, Scanned
from trl_attribution.discovery.topics import Topics, topic_words
from trl_attribution.lenses.config import SaeConfig
from trl_attribution.lenses.described import describe_latents
from trl_attribution.lenses.latents import latent_engine, latents_of_pairs
from trl_attribution.lenses.reconstruction import CheckedSae, check_sae
from trl_attribution.lenses.texts import sequences_of
from trl_attribution.pairs import EncodedPair, Encoder, RowFault, whole_text
from trl_attribution.pairs.dataset_pass import encoded_pairs
from trl_attribution.utils.arrays import Floats, Integers
from trl_attribution.utils.progress import OnProgress

if TYPE_CHECKING:
    from trl_attribution.audit.auditor import DataAuditor


_MOST_TOLD = 40
_PROMPT = 1000
"""Characters of a prompt's end that name its topic."""


@dataclass(frozen=True, eq=False)
class DrawnPairs:
    """What is known of the N pairs that are read, in their order."""

    encoded: Sequence[EncodedPair]
    leaves: Integers
    """``[N]``: the leaf topic of each."""
    shape: Floats
    """``[N, M]``: measures of the responses' length and format."""
    prompts: Sequence[str]
    """``[N]``; RAW, cut."""
    traits: Sequence[str]
    """Names of the traits that were scored."""
    scores: Floats
    """``[N, traits]``."""

    @classmethod
    def of(cls, scanned: Scanned, shape: Floats, read: ReadRows, encoder: Encoder, config: ScanConfig) -> DrawnPairs:
        """Up to ``sae_pairs`` of the pairs that were ``scanned``, whose responses' ``shape`` is ``[all, M]``."""
        audited = scanned.audited
        chosen = np.sort(np.random.default_rng([config.seed, 9]).permutation(len(audited))[: config.sae_pairs])
        places = {audited.pair_ids[place]: int(place) for place in chosen}
        texts = read(audited.rows_of(list(places.values())), audited)
        encoded = {
            pair.pair_id: found
            for pair, found in encoded_pairs(texts.values(), encoder, audited.encoding)
            if not isinstance(found, RowFault)  # none is: it was tokenized for the audit
        }
        order = [places[pair_id] for pair_id in encoded]
        return cls(
            encoded=tuple(encoded.values()),
            leaves=scanned.atoms[order] // len(scanned.source_names),
            shape=shape[order],
            prompts=[whole_text(texts[pair_id].prompt)[-_PROMPT:] for pair_id in encoded],
            traits=[one.name for one in scanned.traits],
            scores=scanned.scores[order],
        )


def scan_latents(
    auditor: DataAuditor,
    sae: SaeConfig,
    pairs: DrawnPairs,
    topics: Topics,
    config: ScanConfig,
    on_progress: OnProgress,
) -> Latents:
    """Read ``pairs`` through the autoencoder and tell which latents stand out, everywhere or in a topic.

    Raises:
        ModelError: the autoencoder cannot be read, or does not fit M0.
    """
    sequences = sequences_of(pairs.encoded)
    checked = check_sae(sae, auditor.model, sequences, auditor.config.blocks_path)
    latents, scores = _scores(auditor, checked, pairs.encoded, config.min_pairs, on_progress)
    cells = Cells.of(topics, 1)
    sums = Sums.of(scores, np.ones(scores.shape, dtype=bool), pairs.leaves, cells.members.shape[1])
    whole = sums.over(cells.members)
    tested = whole.count >= config.min_pairs
    drawn = by_chance(
        scores,
        pairs.leaves,
        cells.members,
        config.flips,
        config.seed,
        lambda done, total: on_progress("Drawing random labels for latents", done, total),
    )
    chance = Chance(highest_by_chance(drawn, tested), config.alpha)
    standing = np.flatnonzero((np.abs(whole.z) * tested).max(axis=0, initial=0) >= chance.threshold)
    told = _told(scores[:, standing], pairs, cells, chance, config)
    drafts = [_Draft(int(standing[place.trait]), place, scores, pairs, cells, chance, config) for place in told]
    drafts = sorted(drafts, key=lambda one: -one.certain)
    words = describe_latents(
        checked.sae,
        [int(latents[one.column]) for one in drafts[:_MOST_TOLD]],
        auditor.model,
        sequences,
        auditor.config.blocks_path,
    )
    return Latents(
        sae=checked.to_json(),
        pairs=len(pairs.encoded),
        tested=len(latents),
        threshold=round(chance.threshold, 4),
        standing=len(drafts),
        findings=tuple(
            draft.finding(
                one.latent, one.promotes, tuple((text.before, text.token, text.after) for text in one.raised_by)
            )
            for draft, one in zip(drafts, words, strict=False)
        ),
    )


def _scores(
    auditor: DataAuditor, checked: CheckedSae, pairs: Sequence[EncodedPair], fewest: int, on_progress: OnProgress
) -> tuple[Integers, Floats]:
    """The latents that differ on at least ``fewest`` pairs ``[T]``, and their differences ``[N, T]``."""
    from scipy import sparse

    engine = latent_engine(auditor.model, checked.sae, auditor.activations((checked.sae.layer,)))
    parts = [
        sparse.csr_array(found.differences.numpy())
        for found in latents_of_pairs(engine, pairs, lambda done: on_progress("Reading latents", done, len(pairs)))
    ]
    rows = sparse.vstack(parts).tocsc()
    latents = np.flatnonzero(np.diff(rows.indptr) >= fewest)
    return latents, rows[:, latents].toarray().astype(np.float32)


def _told(scores: Floats, pairs: DrawnPairs, cells: Cells, chance: Chance, config: ScanConfig) -> list[Place]:
    applies = np.ones(scores.shape, dtype=bool)
    rest, _ = rest_without_shape(scores, pairs.shape, applies)
    atoms = cells.members.shape[1]
    both = [Sums.of(one, applies, pairs.leaves, atoms) for one in (scores, rest)]
    thresholds = np.full((len(cells.members), scores.shape[1]), chance.threshold)
    return list(places(both[0], both[1], cells, thresholds, config.min_pairs))


class _Draft:
    """One latent in one place."""

    def __init__(
        self,
        column: int,
        place: Place,
        scores: Floats,
        pairs: DrawnPairs,
        cells: Cells,
        chance: Chance,
        config: ScanConfig,
    ) -> None:
        self.column, self.place, self.pairs, self.cells, self.chance = column, place, pairs, cells, chance
        self.members = np.flatnonzero(place.atoms[pairs.leaves])
        self.own = scores[self.members, column].astype(np.float64)
        self.effect, self.low, self.high = effect_interval(self.own.astype(np.float32), config.seed)

    @property
    def certain(self) -> float:
        """The effect that is sure: the end of its interval that is closer to none."""
        sign = 1.0 if self.effect > 0 else -1.0
        return max(0.0, min(self.low * sign, self.high * sign))

    def finding(
        self, latent: int, promotes: tuple[str, ...], raised_by: tuple[tuple[str, str, str], ...]
    ) -> LatentFinding:
        """What is told of it."""
        mean = float(self.own.mean())
        half = 1.96 * float(self.own.std(ddof=1)) / np.sqrt(len(self.own))
        z = float(self.own.sum() / np.sqrt(np.square(self.own).sum()))
        trait, likeness = self._alike()
        everywhere = self.place.cell == WHOLE
        return LatentFinding(
            latent=latent,
            everywhere=everywhere,
            beside=everywhere and not self.place.atoms.all(),
            topic=self.cells.topics[self.place.cell],
            words=() if everywhere else self._words(),
            pairs=len(self.members),
            raised=int((self.own > 0).sum()),
            lowered=int((self.own < 0).sum()),
            difference=round(mean, 5),
            difference_low=round(mean - half, 5),
            difference_high=round(mean + half, 5),
            effect=round(self.effect, 3),
            effect_low=round(self.low, 3),
            effect_high=round(self.high, 3),
            z=round(z, 2),
            adjusted_p=round(self.chance.of(z), 5),
            alike=trait,
            likeness=round(likeness, 3),
            promotes=promotes,
            raised_by=raised_by,
        )

    def _alike(self) -> tuple[str, float]:
        """The trait whose scores go along with the latent's most, and their correlation over these pairs."""
        traits = self.pairs.scores[self.members].astype(np.float64)
        lengths = np.sqrt(np.square(traits).sum(axis=0) * np.square(self.own).sum())
        # Not centered: turning a pair round turns both, so that what they share on average counts too.
        likeness = (self.own @ traits) / np.where(lengths > 0, lengths, np.inf)
        if not len(likeness):
            return "", 0.0
        best = int(np.abs(likeness).argmax())
        return self.pairs.traits[best], float(likeness[best])

    def _words(self) -> tuple[str, ...]:
        inside = np.zeros(len(self.pairs.prompts), dtype=bool)
        inside[self.members] = True
        return topic_words(self.pairs.prompts, inside)
