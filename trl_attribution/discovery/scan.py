"""The scan from end to end: vectors as an audit makes them, then every trait in every place, in one pass over them.

Axis letters: N pairs, T traits, M measures, A atoms, C cells, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trl_attribution.audit.info import AuditInfo
from trl_attribution.audit.own_responses import kept_own
from trl_attribution.behaviors.encoding import PromptFormat
from trl_attribution.discovery.audited import AuditedPairs
from trl_attribution.discovery.changes import Change, change_vectors
from trl_attribution.discovery.config import DiscoveryConfig
from trl_attribution.discovery.effects import Sums, without_shape
from trl_attribution.discovery.findings import Latents, Prediction, ScanResult, Unnamed
from trl_attribution.discovery.prediction import Differences, compared, differences_of, predicted
from trl_attribution.discovery.scan_config import ScanConfig
from trl_attribution.discovery.selecting import Cells, places
from trl_attribution.discovery.standing import Basis, Standing
from trl_attribution.discovery.telling import Scanned, absent, checks, tell
from trl_attribution.discovery.topics import Topics, Wording, topic_words
from trl_attribution.discovery.traits.measures import MEASURES, SHAPE, measured, take_measures
from trl_attribution.discovery.traits.panel import Panel, build_panel, unit
from trl_attribution.discovery.traits.trait import read_traits
from trl_attribution.errors import ModelError, SettingsError
from trl_attribution.lenses.config import SaeConfig
from trl_attribution.lenses.reconstruction import fitting_sae
from trl_attribution.pairs import Pair, PairReader, whole_text
from trl_attribution.pairs.lookup import pairs_at_rows
from trl_attribution.pairs.own_responses import OwnFile
from trl_attribution.store.header import read_settings
from trl_attribution.utils.arrays import Doubles, Floats
from trl_attribution.utils.progress import OnProgress, Stopwatch, silent
from trl_attribution.utils.text import counted, tally

if TYPE_CHECKING:
    from datasets import Dataset

    from trl_attribution.audit.auditor import DataAuditor
    from trl_attribution.pairs.rows import RowSource

_BLOCK = 8192
_CLUSTERED = 3000
"""Pairs that topics are made from, and whose prompts name them."""
_PROMPT = 1000
"""Characters of a prompt's end that name its topic."""
_LEAF = 10
_UNNAMED = 3


def scan_dataset(
    auditor: DataAuditor,
    dataset: str | Path | Dataset | Sequence[Mapping[str, Any]],
    output_dir: str | Path,
    config: ScanConfig | None = None,
    on_progress: OnProgress | None = None,
    changes: Sequence[Change] | None = None,
    prompt_format: PromptFormat = "auto",
    sae: SaeConfig | None = None,
) -> ScanResult:
    """What ``dataset`` would teach the auditor's model; see :meth:`DataAuditor.scan`."""
    settings = config or ScanConfig()
    scan = _Scan(auditor, dataset, Path(output_dir), settings, on_progress or silent, changes, prompt_format, sae)
    return scan.run()


@dataclass(eq=False)
class _Scan:
    auditor: DataAuditor
    dataset: str | Path | Dataset | Sequence[Mapping[str, Any]] | RowSource
    folder: Path
    config: ScanConfig
    on_progress: OnProgress
    changes: Sequence[Change] | None = None
    prompt_format: PromptFormat = "auto"
    sae: SaeConfig | None = None
    watch: Stopwatch = field(default_factory=Stopwatch)
    notes: list[str] = field(default_factory=list)

    def run(self) -> ScanResult:
        """The whole scan."""
        traits = read_traits(self.config.traits)  # a wrong name must not show after the vectors are made
        if self.sae is not None:
            if PairReader(self.dataset, self.auditor.config.reading).has_images:
                raise SettingsError("sae: the dataset holds images, and an autoencoder reads text only; leave it out")
            fitting_sae(self.sae, self.auditor.model, self.auditor.config.blocks_path)  # nor a wrong file
        with self.watch.timed("vectors"):
            audited, layer = self._audited()
        with self.watch.timed("traits"):
            panel = build_panel(traits, self.auditor, layer, self.on_progress)
        with self.watch.timed("texts"):
            prompts = self._prompts(audited)
            wording = Wording.of(list(prompts.values()), self.auditor.model.tokenizer.tokenize)
            measures_NM, worded_NW = self._texts(audited, wording)
        with self.watch.timed("scores"):
            contexts, vectors = self._sample(audited, layer, list(prompts))
            topics = Topics.of(contexts, worded_NW[list(prompts)], max(_LEAF, self.config.min_pairs // 2))
            basis = Basis.of(vectors, panel)
            scanned, agreement, pairs = self._scored(audited, panel, basis, topics, (measures_NM, worded_NW), prompts)
            scores = Sums.of(scanned.scores, scanned.applies, scanned.atoms, scanned.cells.members.shape[1])
        with self.watch.timed("chance"):
            tested = scores.over(scanned.cells.members).count >= self.config.min_pairs
            standing = Standing.of(scanned, tested, self.config, partial(self.on_progress, "Drawing random labels"))
        with self.watch.timed("findings"):
            shapeless = self._shapeless(scanned, panel, measures_NM)
            least = np.full(tested.shape, standing.chance.threshold)
            stand, names = (
                list(places(scores, shapeless, scanned.cells, thresholds, self.config.min_pairs))
                for thresholds in (least, standing.thresholds)
            )
            told = tell(scanned, scores, stand, names, standing, self._read, self.folder, self.config)
        with self.watch.timed("prediction"):
            prediction = self._predicted(audited, panel, topics, wording, pairs, prompts)
        with self.watch.timed("latents"):
            latents = self._latents(scanned, topics, measures_NM)
        with self.watch.timed("unnamed"):
            unnamed = self._unnamed(audited, layer)
        info = audited.info
        if skipped := info.dataset.skipped:
            self.notes.append(f"{counted(sum(skipped.values()), 'row')} left out: {tally(skipped)}.")
        result = ScanResult(
            dataset=info.dataset.model_dump(include={"name", "fingerprint", "pairs"}),
            model=info.model.model_dump(include={"name", "digest"}),
            kind=info.reading.kind,
            settings=self.config.to_json(),
            layer=layer,
            pairs=len(audited),
            sampled=_is_sample(info, self.config.sample),
            topics=len({one for one in scanned.cells.topics if one is not None}),
            tests=int(tested.sum()),
            threshold=round(standing.chance.threshold, 4),
            findings=told.findings,
            explained=told.explained,
            traits=checks(panel, agreement),
            absent=absent(scanned, [*stand, *names]),
            unnamed=unnamed,
            prediction=prediction,
            latents=latents,
            notes=tuple(self.notes),
            seconds=self.watch.rounded(),
        )
        result.save(self.folder)
        return result

    def _audited(self) -> tuple[AuditedPairs, int]:
        """The dataset's vectors: those of the audit in the folder, or made as one without probes."""
        from trl_attribution.audit.auditor import DataAuditor

        model = self.auditor.model
        info = AuditInfo.load(self.folder) if (self.folder / "audit.json").exists() else None
        if info is not None and (info.probes or info.training is not None):
            # Its scores, manifests and report are somebody's work: only its vectors are looked at.
            audited = AuditedPairs.open(self.folder, self.dataset)
            if audited.model.differences(model.fingerprint):
                raise ModelError(
                    f"{self.folder} holds an audit on another model ({info.model.name}). Give that one, or another -o."
                )
            return audited, self._layer(audited.store.settings.layers)
        stored = self.folder / "vectors"
        layers = self.auditor.chosen_layers or (
            read_settings(stored).layers if (stored / "store.json").exists() else None
        )
        layer = self._layer(layers)
        config = replace(self.auditor.config, layers=layers or (layer,), adapter=None, quantization=None)
        made = DataAuditor(model, config=config).audit(
            self.dataset,
            self.folder,
            sample=self.config.sample,
            results=False,
            on_progress=self.on_progress,
        )
        self.dataset = made.source if made.source is not None else self.dataset
        return AuditedPairs.of(made), layer

    def _layer(self, stored: tuple[int, ...] | None) -> int:
        """The layer asked for, else the one closest to two thirds of the model's depth."""
        from trl_attribution.activations import find_blocks

        blocks = find_blocks(self.auditor.model.model, self.auditor.config.blocks_path)
        depth = len(blocks.blocks)
        asked = self.config.layer
        if asked is not None:
            blocks.check_layers((asked,))
            if stored is not None and asked not in stored:
                listed = ", ".join(map(str, stored))
                raise SettingsError(
                    f"layer: {self.folder} holds vectors of layers {listed}, not {asked}; take another -o"
                )
            return asked
        wanted = max(1, round(depth * 2 / 3))
        return min(stored or (wanted,), key=lambda layer: (abs(layer - wanted), layer))

    def _prompts(self, audited: AuditedPairs) -> dict[int, str]:
        """The ends of the prompts that topics are made from, by place."""
        drawn = np.sort(np.random.default_rng([self.config.seed, 6]).permutation(len(audited))[:_CLUSTERED]).tolist()
        found = self._read(audited.rows_of(drawn), audited)
        ids = [audited.pair_ids[place] for place in drawn]
        return {place: _ending(found[pair_id]) for place, pair_id in zip(drawn, ids, strict=True) if pair_id in found}

    def _texts(self, audited: AuditedPairs, wording: Wording) -> tuple[Floats, Floats]:
        """``[N, M]`` measures and ``[N, W]`` wordings of all pairs."""
        place_of = {pair_id: place for place, pair_id in enumerate(audited.pair_ids)}
        measures = np.zeros((len(audited), len(MEASURES)), dtype=np.float32)
        worded = np.zeros((len(audited), wording.basis.shape[1]), dtype=np.float32)
        seen = np.zeros(len(audited), dtype=bool)
        texts: dict[int, str] = {}
        reader = PairReader(self.dataset, replace(audited.reading, on_bad_row="skip"))
        reader.own = self._own(audited)
        for pair in reader:
            place = place_of.get(pair.pair_id)
            if place is None or seen[place]:
                continue
            seen[place] = True
            measures[place] = measured(pair)
            texts[place] = _ending(pair)
            if len(texts) == 256:
                worded[list(texts)] = wording.vectors(list(texts.values()))
                texts.clear()
                self.on_progress("Measuring texts", int(seen.sum()), len(audited))
        if texts:
            worded[list(texts)] = wording.vectors(list(texts.values()))
        self.on_progress("Measuring texts", int(seen.sum()), len(audited))
        if not seen.all():
            raise SettingsError(
                f"{self.folder} holds an audit of {audited.info.dataset.kind.counted(len(audited))}, of which "
                f"{int((~seen).sum()):,} are not in this dataset. Give the dataset that was audited, or another output "
                "folder (-o)."
            )
        return measures, worded

    def _sample(self, audited: AuditedPairs, layer: int, places: Sequence[int]) -> tuple[Doubles, Doubles]:
        """Context and pair vectors of some pairs."""
        self.on_progress("Finding topics", 0, len(places))
        sample = audited.store.select([audited.pair_ids[place] for place in places])
        found = sample.context(layer).double().numpy(), sample.layer(layer).double().numpy()
        self.on_progress("Finding topics", len(places), len(places))
        return found

    def _scored(
        self,
        audited: AuditedPairs,
        panel: Panel,
        basis: Basis,
        topics: Topics,
        texts: tuple[Floats, Floats],
        prompts: Mapping[int, str],
    ) -> tuple[Scanned, dict[str, float], Differences]:
        """Scores and places of all pairs, the traits' agreement with what is counted, and how far pairs reach along."""
        scores = np.zeros((len(audited), len(panel.traits)), dtype=np.float32)
        along, fits = np.zeros(scores.shape, dtype=np.float32), np.zeros(scores.shape, dtype=np.float32)
        components = np.zeros((len(audited), basis.components.shape[1]), dtype=np.float32)
        measures, worded = texts
        applies = np.ones(scores.shape, dtype=bool)
        leaves = np.zeros(len(audited), dtype=np.int64)
        for block in audited.view.blocks([panel.layer], _BLOCK):
            own = slice(block.start, block.start + len(block.pair))
            contexts = block.context[:, 0].double().numpy()
            vectors = block.pair[:, 0].double().numpy()
            scores[own], along[own] = panel.scores(vectors), panel.along(vectors)
            components[own], fits[own] = unit(vectors) @ basis.components, unit(vectors) @ basis.names.T
            applies[own] = panel.applies(contexts)
            leaves[own] = topics.leaves_of(contexts, worded[own])
            self.on_progress("Scoring traits", own.stop, len(audited))
        agreement = take_measures(panel.traits, scores, measures)
        take_measures(panel.traits, along, measures)
        pairs = Differences.of(panel, along, applies.copy(), topics.part_of_leaf[leaves])
        scores[~applies] = fits[~applies] = 0
        names, sources = audited.largest_sources()
        cells = Cells.of(topics, len(names))
        scanned = Scanned(
            audited=audited,
            traits=panel.traits,
            scores=scores,
            applies=applies,
            atoms=leaves * len(names) + sources,
            cells=cells,
            source_names=names,
            sources=sources,
            prompts=prompts,
            components=components,
            fits=fits,
        )
        return scanned, agreement, pairs

    def _predicted(
        self,
        audited: AuditedPairs,
        panel: Panel,
        topics: Topics,
        wording: Wording,
        pairs: Differences,
        prompts: Mapping[int, str],
    ) -> Prediction:
        """How far training would move each trait, and did where both models' responses were given."""
        own, texts = pairs.parts[list(prompts)], list(prompts.values())
        words = {part: topic_words(texts, own == part) for part in topics.parts}
        prediction = Prediction(changes=predicted(panel, pairs, words, self.config.min_pairs))
        if self.changes is None:
            return prediction
        read = change_vectors(
            self.changes,
            self.auditor.model,
            self.auditor.activations((panel.layer,)),
            audited.encoding,
            self.prompt_format,
            progress=lambda done, total: self.on_progress("Reading responses with M0", done, total),
            keep_unchanged=True,
        )
        worded = wording.vectors([_ending(one) for one in read.changes])
        return compared(prediction, panel, differences_of(read, panel, topics, worded), read.left_out)

    def _shapeless(self, scanned: Scanned, panel: Panel, measures: Floats) -> Sums:
        """Sums of the scores without what length and format explain; what is counted on the text stays as it is."""
        shape = measures[:, [MEASURES.index(name) for name in SHAPE]]
        probed = [place for place, one in enumerate(panel.traits) if not one.measure]
        rest = scanned.scores.copy()
        shares = np.zeros(len(panel.traits))
        rest[:, probed], shares[probed] = without_shape(scanned.scores[:, probed], shape, scanned.applies[:, probed])
        scanned.shape_shares = shares
        return Sums.of(rest, scanned.applies, scanned.atoms, scanned.cells.members.shape[1])

    def _read(self, rows: Mapping[str, int], audited: AuditedPairs) -> dict[str, Pair]:
        """The pairs with the given ids at the given rows."""
        return pairs_at_rows(self.dataset, audited.reading, rows, self._own(audited))

    def _own(self, audited: AuditedPairs) -> OwnFile | None:
        """The other side of examples that have one: their texts are measured against it as their vectors are."""
        return kept_own(self.folder, self.auditor.config.own, audited.store.settings.own_responses)

    def _latents(self, scanned: Scanned, topics: Topics, measures: Floats) -> Latents | None:
        """What the autoencoder says, where one is given: some pairs are read again, token by token."""
        if self.sae is None:
            return None
        from trl_attribution.discovery.latents import DrawnPairs, scan_latents

        shape = measures[:, [MEASURES.index(name) for name in SHAPE]]
        pairs = DrawnPairs.of(scanned, shape, self._read, self.auditor.model.encoder, self.config)
        return scan_latents(self.auditor, self.sae, pairs, topics, self.config, self.on_progress)

    def _unnamed(self, audited: AuditedPairs, layer: int) -> tuple[Unnamed, ...]:
        """The largest clusters of pairs that push alike, whatever they are called."""
        from trl_attribution.discovery.run import discover_pairs

        config = DiscoveryConfig(layers=(layer,), seed=self.config.seed, sample=1000, map_pairs=10)
        if not self.config.unnamed or len(audited) < 10 * config.min_size:
            return ()
        found = discover_pairs(
            audited, config, read=lambda rows: self._read(rows, audited), on_progress=self.on_progress
        )
        return tuple(
            Unnamed(
                cluster=one.cluster,
                words=one.words,
                lost_words=one.lost_words,
                prompt_words=one.prompt_words,
                share=round(one.share, 4),
                pairs=one.pairs_towards,
            )
            for one in found.discovery.clusters[:_UNNAMED]
        )


def _ending(one: Pair | Change) -> str:
    """The end of its prompt, which names its topic."""
    return whole_text(one.prompt)[-_PROMPT:]


def _is_sample(info: AuditInfo, asked: int | None) -> bool:
    """Whether the audit is of a part of its dataset."""
    data = info.dataset
    if info.reading.kind in ("kto", "rollouts"):  # an example may be several rows
        return asked is not None
    return data.pairs + data.duplicate_rows + sum(data.skipped.values()) < data.rows
