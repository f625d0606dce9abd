"""DataAuditor: the one object that ties pairs, activations, store, scoring and manifests together."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl_attribution.activations import ActivationConfig, ActivationEngine
from trl_attribution.audit_config import AskedScore, AuditConfig
from trl_attribution.audit_folder import Audit, AuditInfo, FolderClaim, check_folder, machine, versions
from trl_attribution.census import Census, PairIndex, encoded_pairs, take_census
from trl_attribution.errors import DataError, ProbeError, SettingsError
from trl_attribution.estimate import Estimate, estimate
from trl_attribution.models import LoadedModel, load_model
from trl_attribution.pairs import EncodedPair, PairReader, RowFault
from trl_attribution.probes import Probe, ProbeRegistry
from trl_attribution.scoring import Rule, Scores, score_view, write_scores
from trl_attribution.store import StoreSettings, VectorStore

if TYPE_CHECKING:
    from datasets import Dataset

OnProgress = Callable[[str, int, int], None]
"""Called with the stage (``read``, ``vectors``, ``scores``), what is done of it, and its total (0 if unknown)."""


class DataAuditor:
    """Audits preference datasets against registered probes on one M0.

    Example:
        >>> auditor = DataAuditor("path/to/sft-model", probes="probes/", layers=[20])  # doctest: +SKIP
        >>> audit = auditor.audit("data.jsonl", output_dir="audit/")  # doctest: +SKIP
        >>> audit.flag(top_k=500).to_manifest(action="flip").save("flip.jsonl")  # doctest: +SKIP

    Args:
        model: M0: a Hub id, a local folder, a GGUF file, or a model that :func:`load_model` returned.
        probes: a registry folder, a registry, or probes; None computes vectors without scoring them.
        config: the settings; single ones can be given by name instead.
        **settings: fields of :class:`AuditConfig`, over those of ``config``.

    Raises:
        SettingsError: an unknown setting, or neither layers nor probes to take them from.
    """

    def __init__(
        self,
        model: str | Path | LoadedModel,
        *,
        probes: str | Path | ProbeRegistry | Sequence[Probe] | None = None,
        config: AuditConfig | None = None,
        **settings: Any,
    ) -> None:
        known = AuditConfig.__dataclass_fields__
        unknown = sorted(settings.keys() - known.keys())
        if unknown:
            raise SettingsError(f"unknown setting {', '.join(unknown)}; choose from {', '.join(known)}")
        self.config = replace(config or AuditConfig(), **settings)
        self.probes = load_probes(probes, self.config.score)
        self.layers = self._choose_layers()
        self._model = model

    @property
    def model(self) -> LoadedModel:
        """M0, loaded on first use and checked against the probes.

        Raises:
            ModelError: it cannot be loaded.
            SettingsError: a loaded model was given, of another dtype than was asked for.
            ProbeError: a probe was made with another M0.
        """
        config = self.config
        if not isinstance(self._model, LoadedModel):
            self._model = load_model(self._model, config.dtype, config.device, config.trust_remote_code)
        if config.dtype not in ("auto", self._model.dtype):
            raise SettingsError(f"dtype: asked for {config.dtype!r}, but the model given is {self._model.dtype}")
        for probe in self.probes:
            probe.check_model(self._model.fingerprint)
        return self._model

    def audit(
        self,
        dataset: str | Path | Dataset | Sequence[Mapping[str, Any]],
        output_dir: str | Path,
        *,
        vectors: str | Path | None = None,
        rule: Rule | None = None,
        on_progress: OnProgress | None = None,
    ) -> Audit:
        """Compute, store and score the vectors of ``dataset``; a killed audit goes on where it was.

        Args:
            dataset: a Hub id, a local file or folder, a ``Dataset``, or a list of rows.
            output_dir: the audit folder. One that holds an audit of another dataset or model is refused.
            vectors: a vector store to use and add to, instead of ``output_dir/vectors``: pairs that it holds
                already, from whatever dataset, are not computed again.
            rule: how pairs will be flagged; one that cannot work on this dataset is refused before the work starts.
            on_progress: see :data:`OnProgress`.

        Raises:
            DataError: the dataset cannot be read as pairs; nothing is written then.
            SettingsError: the folder was made with other settings (the difference is printed), or ``rule`` asks for
                more pairs than there are.
            ModelError, ProbeError, StoreError: as their parts raise them.
        """
        run = _Run(self, dataset, Path(output_dir), vectors, on_progress or _silent)
        return run.audit(rule)

    def estimate(self, dataset: str | Path | Dataset | Sequence[Mapping[str, Any]]) -> Estimate:
        """Read the whole dataset, run a sample of it, and say what the audit would take; nothing is written.

        Raises:
            DataError: the dataset cannot be read as pairs.
            ModelError, ProbeError: as for :meth:`audit`.
        """
        engine = self.new_engine()
        census = take_census(PairReader(dataset, self.config.reading), self.model.tokenizer, self.config.encoding)
        return estimate(engine, census, self.config.vector_dtype)

    def new_engine(self) -> ActivationEngine:
        """An engine that reads this auditor's layers of M0."""
        config = self.config
        activations = ActivationConfig(self.layers, config.token_budget, config.path, config.blocks_path)
        return ActivationEngine(self.model.model, activations)

    def store_settings(self, engine: ActivationEngine) -> StoreSettings:
        """What the vectors of this auditor's audits are bound to."""
        return StoreSettings(
            model_fingerprint=self.model.fingerprint.digest,
            layers=self.layers,
            hidden_size=engine.hidden_size,
            vector_dtype=self.config.vector_dtype,
            compute_dtype=self.model.dtype,
            max_length=self.config.encoding.max_length,
            truncation_mode=self.config.encoding.truncation_mode,
        )

    def _choose_layers(self) -> tuple[int, ...]:
        layers = self.config.layers
        if layers is None:
            if not self.probes:
                raise SettingsError("layers: give some, or probes to take them from")
            return tuple(sorted({probe.layer for probe in self.probes}))
        if not layers or len(set(layers)) != len(layers):
            raise SettingsError(f"layers: {list(layers)} must name at least one layer, each once")
        for probe in self.probes:
            if not set(probe.layers) & set(layers):
                raise SettingsError(
                    f"layers: probe {probe.name!r} knows layers {list(probe.layers)}, none of {list(layers)}; "
                    "audit one of them, or leave layers out to take those of the probes"
                )
        return tuple(sorted(layers))


class _Run:
    """One audit under way."""

    def __init__(
        self,
        auditor: DataAuditor,
        dataset: str | Path | Dataset | Sequence[Mapping[str, Any]],
        folder: Path,
        vectors: str | Path | None,
        on_progress: OnProgress,
    ) -> None:
        self.auditor = auditor
        self.config = auditor.config
        self.reader = PairReader(dataset, self.config.reading)
        self.folder = folder
        self.vectors = Path(vectors) if vectors is not None else folder / "vectors"
        self.on_progress = on_progress
        self.timings: dict[str, float] = {}

    def audit(self, rule: Rule | None) -> Audit:
        check_folder(self.folder)
        model = self.auditor.model
        engine = self.auditor.new_engine()
        with self._timed("read"):
            total = self.reader.source.num_rows or 0
            census = take_census(
                self.reader,
                model.tokenizer,
                self.config.encoding,
                on_progress=lambda done: self.on_progress("read", done, total),
            )
        if rule is not None:
            rule.check(len(census.index))
        settings = self.auditor.store_settings(engine)
        claim = FolderClaim(self.folder, self.vectors, settings, census.survey, self.reader.source.name)
        with claim.released_on_failure():
            store = VectorStore.create(self.vectors, settings)
            claim.write()
            with self._timed("vectors"):
                computed = self._fill(store, engine, census)
        scores = self._score(store, census) if self.auditor.probes else None
        info = self._info(engine, census, computed, settings)
        info.save(self.folder)
        return Audit(
            folder=self.folder,
            info=info,
            store=store,
            index=census.index,
            scores=scores,
            probes=tuple(self.auditor.probes),
            reading=replace(self.config.reading, format=self.reader.format),
            skipped=tuple(census.skipped),
        )

    def _score(self, store: VectorStore, census: Census) -> Scores:
        with self._timed("scores"):
            return score_index(
                store,
                census.index,
                self.auditor.probes,
                self.config.score,
                self.auditor.layers,
                self.folder,
                lambda done, total: self.on_progress("scores", done, total),
            )

    def _fill(self, store: VectorStore, engine: ActivationEngine, census: Census) -> int:
        """Compute what the store lacks, one shard after the other in dataset order; how many pairs that was.

        What a shard holds follows from what is missing alone, so a killed and rerun audit makes the same shards.
        """
        missing = dict.fromkeys(store.missing(census.index.pair_ids))
        total, done = len(missing), 0
        if total < len(census.index):
            store.verify()  # what is taken over is checked; what is written now was just computed
        self.on_progress("vectors", 0, total)
        if not missing:
            return 0
        with store.writer() as writer:
            for shard in self._shards(missing):
                found = engine.pair_vectors(shard, self._within_shard(done, len(shard), total))
                writer.add([pair.pair_id for pair in shard], found.pair, found.context)
                done += len(shard)
                self.on_progress("vectors", done, total)
        if done != total:
            raise DataError(
                f"{self.reader.source.name}: changed while it was read: {total - done} pairs are gone. "
                f"Audit it again into another folder; --vectors {self.vectors} uses what was computed so far."
            )
        return total

    def _within_shard(self, done: int, size: int, total: int) -> Callable[[int, int], None]:
        """Progress of one shard's responses as progress of the audit's pairs."""
        return lambda part, whole: self.on_progress("vectors", done + size * part // whole, total)

    def _shards(self, missing: dict[str, None]) -> Iterator[list[EncodedPair]]:
        """The missing pairs, encoded, in shards of ``shard_size``; takes each out of ``missing`` as it comes."""
        shard: list[EncodedPair] = []
        wanted = (pair for pair in self.reader if pair.pair_id in missing)
        for pair, encoded in encoded_pairs(wanted, self.auditor.model.tokenizer, self.config.encoding):
            # A repeat in the same tokenizer batch was let through before its first copy was taken out.
            if isinstance(encoded, RowFault) or pair.pair_id not in missing:
                continue
            del missing[pair.pair_id]
            shard.append(encoded)
            if len(shard) == self.config.shard_size:
                yield shard
                shard = []
        if shard:
            yield shard

    def _info(self, engine: ActivationEngine, census: Census, computed: int, settings: StoreSettings) -> AuditInfo:
        stats = engine.stats
        return AuditInfo(
            dataset={
                "name": self.reader.source.name,
                "format": self.reader.format,
                "fingerprint": census.survey.fingerprint,
                "rows": census.survey.pairs + len(census.survey.skipped),
                "pairs": len(census.index),
                "duplicate_rows": census.survey.pairs - census.survey.unique,
                "most_repeated": [asdict(duplicate) for duplicate in census.survey.duplicates],
                "contradictions": census.survey.contradictions,
                "skipped": census.skip_reasons,
                "truncated_pairs": census.truncated,
                "tokens": census.tokens,
                "sources": census.survey.sources,
            },
            model={
                "name": self.auditor.model.name,
                "fingerprint": self.auditor.model.fingerprint.to_json(),
                "digest": self.auditor.model.fingerprint.digest,
                "dtype": self.auditor.model.dtype,
                "device": self.auditor.model.device,
            },
            probes={probe.name: probe.fingerprint for probe in self.auditor.probes},
            settings=self.config.to_json(),
            vectors={
                "store": "vectors" if self.vectors == self.folder / "vectors" else str(self.vectors),
                "settings": settings.as_dict(),
                "computed": computed,
                "reused": len(census.index) - computed,
                "path": engine.path if computed else None,
                "path_reason": engine.path_reason if computed else "nothing had to be computed",
            },
            cost={
                "seconds": {stage: round(seconds, 3) for stage, seconds in self.timings.items()},
                "pairs_per_second": round(computed / self.timings["vectors"], 3) if computed else None,
                "tokens_computed": stats.tokens_computed,
                "tokens_in_sequences": stats.tokens_in_sequences,
                "flops": 2 * engine.parameters_per_token() * stats.tokens_computed,
                **machine(),
            },
            versions=versions(),
        )

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.timings[stage] = time.perf_counter() - start


def score_index(
    store: VectorStore,
    index: PairIndex,
    probes: Sequence[Probe],
    kind: AskedScore,
    layers: Sequence[int],
    folder: Path,
    on_progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """Score the pairs of ``index`` with ``probes`` and write ``scores.parquet`` into the audit folder ``folder``."""
    scores = score_view(store.select(index.pair_ids), probes, kind, layers, folder, progress=on_progress)
    write_scores(folder / "scores.parquet", scores, index.sources, index.rows)
    return scores


def load_probes(probes: str | Path | ProbeRegistry | Sequence[Probe] | None, score: AskedScore) -> list[Probe]:
    """The probes, checked for what scoring would refuse after all vectors are computed."""
    if probes is None:
        return []
    if isinstance(probes, str | Path):
        probes = ProbeRegistry(probes)
    found = probes.load_all() if isinstance(probes, ProbeRegistry) else list(probes)
    if not found:
        raise SettingsError("probes: none there; build one with `trl-attribution probe build`, or leave probes out")
    names = [probe.name for probe in found]
    if len(set(names)) < len(names):
        raise SettingsError(f"probes: their names must differ, but these were given: {', '.join(names)}")
    unknowing = [probe.name for probe in found if not probe.knows_prompts]
    if score == "contextual" and unknowing:
        raise ProbeError(
            f"score: contextual scores need probes that know their prompts; {', '.join(unknowing)} does not. "
            "Build it from a behavior file, or ask for score 'response' or 'auto'."
        )
    return found


def _silent(stage: str, done: int, total: int) -> None:
    """The progress of a caller who asked for none."""
