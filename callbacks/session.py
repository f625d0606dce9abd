"""One training run under audit: everything between its first and its last step."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from trl_attribution.activations import ActivationEngine
from trl_attribution.audit.finish import Ending, Vectors, finish
from trl_attribution.audit.folder import Audit, Flagged
from trl_attribution.audit.info import ModelInfo, TrainingInfo, machine
from trl_attribution.callbacks.before_after import BeforeAfter, RunChanges
from trl_attribution.callbacks.capture import CaptureError
from trl_attribution.callbacks.config import CallbackConfig
from trl_attribution.callbacks.dedicated import fill_store, m0_to_run, missing_pairs
from trl_attribution.callbacks.main_rank import MainRank
from trl_attribution.callbacks.online_scores import OnlineScores, Window
from trl_attribution.callbacks.passes import ReferencePasses
from trl_attribution.callbacks.recorder import CaptureCounts, Recorder, added, without_copies
from trl_attribution.callbacks.reference_pass import ReferenceModel, dedicated
from trl_attribution.errors import AttributionError, SettingsError
from trl_attribution.models import LoadedModel
from trl_attribution.pairs import Encoding, PairReader
from trl_attribution.pairs.dataset_pass import DatasetPass, PairIndex
from trl_attribution.probes import Probe
from trl_attribution.report.ending import write_results
from trl_attribution.scoring import DEFAULT_FDR, Rule
from trl_attribution.store import StoreSettings
from trl_attribution.store.merging import merge_parts, parts_of
from trl_attribution.utils.distributed import Ranks, is_sharded, random_state_kept
from trl_attribution.utils.dtypes import torch_dtype
from trl_attribution.utils.kinds import EXAMPLES
from trl_attribution.utils.progress import Stopwatch

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finished:
    """What a run leaves behind, on the main rank."""

    audit: Audit
    flagged: Flagged | None
    """None where no probe was given and no behavior changed."""
    manifests: dict[str, str]
    counts: CaptureCounts
    """Of all ranks together."""
    findings: RunChanges
    """What the run changed."""
    report: Path | None = None
    """``report.html``; None where it could not be written."""


@dataclass
class TrainingAudit:
    """Reads, keeps and finally scores the vectors of one training run; every rank has one.

    Made by :func:`open_training_audit`.
    """

    config: CallbackConfig
    probes: tuple[Probe, ...]
    reader: PairReader
    encoding: Encoding
    m0: LoadedModel
    reference: ReferenceModel
    """Which forward passes show M0."""
    ranks: Ranks
    layers: tuple[int, ...]
    settings: StoreSettings
    data: DatasetPass
    notes: tuple[str, ...]
    online: OnlineScores
    recorder: Recorder
    passes: ReferencePasses
    compare: Callable[[ReferenceModel, Ranks], BeforeAfter]
    """Prepares the comparison of M0 with the trained model."""
    before_after: BeforeAfter | None
    """None on ranks that leave it to the main rank."""
    stopwatch: Stopwatch
    start: float
    """When the audit was opened, by ``time.perf_counter``."""
    stopped_at: int | None = None
    skipped_rows: int = 0
    windows: int = 0

    def __post_init__(self) -> None:
        self.folder = Path(self.config.output_dir)
        self._main_rank = MainRank(self.folder / "parts", self.ranks)
        self._is_shared = is_sharded(self.reference.model)

    def begin_precompute(self) -> None:
        """Read the trainer's own pass over its datasets before training; rows of other datasets are skipped."""
        self.recorder.is_strict = False
        self.passes.attach_to_trainer(self.reference)

    def end_precompute(self) -> None:
        """That pass is over: prove what it showed while the model that ran it is at hand."""
        self.save(at_end=True)
        self.passes.detach()

    def begin(self, *, is_resumed: bool) -> None:
        """Look at M0, and start to read: by hooks on the reference forward, or by a pass of M0 over all pairs."""
        self.save()  # the precompute pass, or an attempt that ran out of memory (auto_find_batch_size)
        self.passes.detach()
        self.look_before(is_resumed=is_resumed)
        if self.reference.is_free:
            self.passes.attach_to_trainer(self.reference)
            return
        self.online.forget_window()
        self.recorder.is_strict = True
        self._complete(is_resumed=is_resumed)

    def micro_batch_done(self) -> None:
        """Called after each micro-batch."""
        self.passes.micro_batch_done()

    def resolve(self) -> None:
        """Identify and score what was seen since the last call."""
        self.passes.resolve()

    def close_window(self) -> Window | None:
        """Metrics over the pairs since the last call, on all ranks together. A collective."""
        self.resolve()
        window = self.online.close_window(self.ranks)
        self.windows += window is not None
        return window

    def step_done(self) -> None:
        """Called after each step of the optimizer. A collective."""
        if self.passes.step_done():
            self._prove()
            self.recorder.write_full_shards()

    def save(self, *, at_end: bool = False) -> None:
        """Bring everything seen so far to disk, once it is proved to be M0's.

        Called with each checkpoint too, so that a resumed run lacks nothing. A collective.

        Raises:
            SettingsError: it is not, and M0 is gone.
        """
        self._prove(at_end=at_end)
        self.recorder.write()

    def keep_what_was_read(self) -> None:
        """:meth:`save` on a rank that cannot wait for the others, as the run is ending with an error.

        That error must stay the one that is raised, so what goes wrong here is logged.
        """
        try:
            self.passes.save_alone(is_shared=self._is_shared)
        except (AttributionError, RuntimeError, OSError) as error:
            logger.error("the vectors read since the last save are not kept: %s", error)

    def release(self) -> None:
        """Take the hooks off and let go of the files; whatever happens to the run, this is called."""
        self.passes.detach()
        self.recorder.close()

    def finish(self, policy: Any = None) -> Finished | None:
        """Look at the trained ``policy``, merge, score and write the audit; the main rank gets it, the others None.

        Raises:
            AttributionError: nothing was captured, a judge gives up, or the audit cannot be written; the parts stay.
        """
        self.save(at_end=True)
        self.release()
        counts = added(self.ranks.gather(self.recorder.counts.to_json()))
        self.skipped_rows = sum(self.ranks.gather(self.skipped_rows))
        findings = self._look_after(policy) if self._is_shared else None
        if not self.ranks.is_main:
            self._main_rank.await_end()
            return None
        with self._main_rank.failure_told():
            return self._conclude(counts, findings, policy)

    def _conclude(self, counts: CaptureCounts, findings: RunChanges | None, policy: Any) -> Finished:
        """Everything that the main rank does alone; the parts go last, which tells the others that it is done."""
        parts = parts_of(self.folder)
        counts = without_copies(counts, parts)
        index = self._captured_index()
        with self.stopwatch.timed("merge"):
            store = merge_parts(parts, self.folder / "vectors", self.settings, index.pair_ids, self.config.shard_size)
            store.verify()
        if findings is None:
            findings = self._look_after(policy)
        probes = (*self.probes, *findings.probes)
        vectors = Vectors(store, index, counts.captured, self.reference.source, self.reference.reason)
        cost = {"training_seconds": round(time.perf_counter() - self.start, 3), **machine()}
        audit = finish(self._ending(vectors, counts, probes, findings), self.stopwatch, cost)
        results = write_results(audit, _rule_for(self.config.rule, len(index)))
        shutil.rmtree(self.folder / "parts")
        return Finished(audit, results.flagged, results.manifests, counts, findings, results.report)

    def _ending(self, vectors: Vectors, counts: CaptureCounts, probes: Sequence[Probe], findings: RunChanges) -> Ending:
        pairs = len(self.data.index)
        return Ending(
            folder=self.folder,
            reader=self.reader,
            data=self.data,
            vectors=vectors,
            probes=probes,
            score=self.config.score,
            layers=self.layers,
            model=ModelInfo.of(self.m0, self.settings.compute_dtype),
            settings=self.config.to_json(),
            notes=self.notes,
            training=TrainingInfo(
                **counts.to_json(),
                pairs_in_dataset=pairs,
                never_seen=pairs - len(vectors.index),
                ranks=self.ranks.world,
                windows=self.windows,
                flag_at=self.online.limits,
                on_flag=self.config.on_flag,
                stopped_at_step=self.stopped_at,
                skipped_rows=self.skipped_rows,
                behaviors=tuple(change.to_json() for change in findings.changes),
                drift=tuple(layer.to_json() for layer in findings.drifts),
                notes=tuple(findings.notes),
            ),
        )

    def look_before(self, *, is_resumed: bool) -> None:
        """The main rank samples from M0, which may take long; the others wait.

        Raises:
            SettingsError: behaviors were asked for and cannot be had where ranks share one model.
        """
        if is_sharded(self.reference.model) and not self._is_shared:  # the trainer has done that since
            self._is_shared = True
            with self.ranks.together():
                self.before_after = self.compare(self.reference, self.ranks)
        with self._main_rank.first() as is_mine, self.stopwatch.timed("before"):
            if is_mine and self.before_after is not None:
                self.before_after.before(is_resumed=is_resumed)

    def _look_after(self, policy: Any) -> RunChanges:
        if policy is None or self.before_after is None:
            return RunChanges()
        with self.stopwatch.timed("after"):
            return self.before_after.after(policy)

    def _prove(self, *, at_end: bool = False) -> None:
        """Where what was read since the last proof is not M0's, compute what is not on disk in a pass of M0 itself.

        Raises:
            SettingsError: M0 is gone, or the run was to act on what it reads.
        """
        fault = self.passes.fault(self.ranks, at_end=at_end)
        if fault is None:
            return
        if self.config.on_flag != "log":
            raise SettingsError(
                f"on_flag={self.config.on_flag!r} cannot act here: {fault.reason}. Use on_flag='log', or switch off "
                "what makes the difference."
            )
        if self.ranks.is_main:
            logger.warning("%s: vectors are read in a pass of M0 by itself instead", fault.reason)
        self.reference = dedicated(self.reference, fault.reason)
        if fault.has_moved:
            self.reference = replace(self.reference, is_m0=False, stays=False)
        if self.before_after is not None:
            self.before_after.look_at(self.reference)
        self._complete(is_resumed=False)

    def _complete(self, *, is_resumed: bool) -> None:
        """Compute what no rank has; nothing is read from here on."""
        self.recorder.write()
        self.ranks.barrier()  # what is missing shows once every rank has written
        with self.stopwatch.timed("dedicated_pass"), random_state_kept():
            self._run_dedicated(is_resumed=is_resumed)
        self.release()

    def _run_dedicated(self, *, is_resumed: bool) -> None:
        wanted = missing_pairs(self.folder, self.data.index.pair_ids)
        if not self.ranks.any(bool(wanted)):
            return
        self.reference = replace(self.reference, source="dedicated pass")
        mine = set(wanted[self.ranks.rank :: self.ranks.world])
        need = f"{EXAMPLES[self.reader.kind].counted(len(wanted))} need a pass of M0"
        with m0_to_run(self.m0, self.reference, need, is_resumed=is_resumed) as model:
            engine = ActivationEngine(model, self.config.activations(self.layers))
            with self._autocast(engine), engine.in_step(self.data.sample[:4]):
                fill_store(self.recorder, engine, self.reader, self.m0.encoder, self.encoding, mine)

    def _autocast(self, engine: ActivationEngine) -> torch.autocast:
        """Accelerate's is on the outermost model, around an adapter, which passes of M0 by itself go past."""
        dtype = torch_dtype(self.settings.compute_dtype)
        return torch.autocast(engine.device.type, dtype, enabled=dtype != engine.dtype)

    def _captured_index(self) -> PairIndex:
        """The pairs that some part (or an earlier merge) has, in dataset order."""
        index = self.data.index
        missing = set(missing_pairs(self.folder, index.pair_ids))
        kept = [place for place, pair_id in enumerate(index.pair_ids) if pair_id not in missing]
        if not kept:
            raise CaptureError(
                "no pair was captured: training ended before its first batch, so nothing can be scored. Train for a "
                "step at least (num_train_epochs, max_steps), or audit the dataset by itself: trl-attribution audit"
            )
        return PairIndex(tuple(index.pair_ids[place] for place in kept), index.rows[kept], index.sources.take(kept))


def _rule_for(rule: Rule, pairs: int) -> Rule:
    """``rule`` for a run that may have ended before it had seen as many pairs as ``top_k`` asks for.

    Behaviors that changed become probes at its end, some of them with too few prompts for a recall.
    """
    if rule.top_k is not None:
        return Rule(top_k=min(rule.top_k, pairs))
    return rule if rule.recall is None else replace(rule, fdr=rule.fdr or DEFAULT_FDR)
