"""One audit on one process: read the dataset, compute the vectors that are missing, score them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trl_attribution.activations import ActivationEngine
from trl_attribution.audit.claim import FolderClaim, check_folder
from trl_attribution.audit.compute import compute_shards
from trl_attribution.audit.finish import Ending, Vectors, finish
from trl_attribution.audit.folder import Audit
from trl_attribution.audit.info import ComputeCost, ModelInfo, machine
from trl_attribution.audit.own_responses import bound_to, may_need, with_own_responses
from trl_attribution.audit.setup import check_for_images, notes_on
from trl_attribution.pairs import Encoder, PairReader, Survey
from trl_attribution.pairs.dataset_pass import Choose, DatasetPass, pass_over, survey
from trl_attribution.pairs.kept_pass import TokensAgain, keep_pass, kept_pass, pass_key
from trl_attribution.pairs.own_responses import OwnFile
from trl_attribution.pairs.token_spool import TokenSpool
from trl_attribution.scoring import Rule
from trl_attribution.store import StoreSettings, VectorStore
from trl_attribution.utils.progress import OnProgress, Stopwatch, silent

if TYPE_CHECKING:
    from datasets import Dataset

    from trl_attribution.audit.auditor import DataAuditor

logger = logging.getLogger(__name__)


class AuditRun:
    """One audit under way."""

    def __init__(
        self,
        auditor: DataAuditor,
        dataset: str | Path | Dataset | Sequence[Mapping[str, Any]],
        folder: Path,
        vectors: str | Path | None = None,
        on_progress: OnProgress | None = None,
    ) -> None:
        self.auditor = auditor
        self.config = auditor.config
        self.reader = PairReader(dataset, self.config.reading)
        if self.reader.has_images:
            check_for_images(self.config)
        self.folder = folder
        self.vectors = Path(vectors) if vectors is not None else folder / "vectors"
        self.on_progress = on_progress or silent
        self.watch = Stopwatch()
        self.notes: tuple[str, ...] = ()
        self.own: OwnFile | None = None
        self.tokens: TokenSpool | TokensAgain
        self.pass_key: str | None = None

    def audit(self, rule: Rule | None, sample: int | None = None) -> Audit:
        """The whole audit; see :meth:`DataAuditor.audit`."""
        check_folder(self.folder)
        model = self.auditor.model
        engine = self.auditor.new_engine()
        with ExitStack() as asking:
            self.find_own_responses(lambda digest: self.claim_to_ask(engine, digest, asking))
            data = self.read(model.encoder, None if sample is None else self.drawn(sample))
            engine.limits.check(data.highest_token, data.longest)
            self.look_at_rule(rule, data)
            claim = self.claim(self.settings(engine), data.survey)
            asking.enter_context(claim.released_on_failure())
            store = claim.take()
            if self.pass_key is not None and isinstance(self.tokens, TokenSpool):
                keep_pass(self.folder, self.pass_key, data)
            missing = ~store.holds(data.index.pair_ids)
            if not missing.all():
                store.verify()  # what is taken over is checked; what is written now was just computed
            # What a shard holds follows from what is missing alone, so a rerun audit makes the same shards.
            blocks = np.where(missing, (missing.cumsum() - 1) // self.config.shard_size, -1)
            self.compute(store, engine, blocks, data)
        return self.finish(store, data, self.model_info(), self.cost(engine), int(missing.sum()))

    def claim(self, settings: StoreSettings, found: Survey) -> FolderClaim:
        """The claim of the folder for this dataset and vectors made with ``settings``."""
        return FolderClaim(self.folder, self.vectors, settings, found, self.reader.source.name)

    def claim_to_ask(self, engine: ActivationEngine, own_digest: str, claimed: ExitStack) -> None:
        """Claim the folder before M0 is asked for own responses, as what the audit will claim it for."""
        settings = replace(self.auditor.store_settings(engine), own_responses=own_digest)
        self.reader.ending_with(self.auditor.model.tokenizer.eos_token)
        claim = self.claim(settings, survey(self.reader))  # own responses leave ids alone
        claimed.enter_context(claim.released_on_failure())
        claim.take()

    def find_own_responses(self, claim: Callable[[str], None]) -> None:
        """Draw M0's own responses once ``claim`` has the folder, or read those given, where examples need them."""

        def tell(done: int, total: int) -> None:
            self.on_progress("responses", done, total)

        if not may_need(self.reader):
            return
        with self.watch.timed("responses"):
            self.own = with_own_responses(
                self.reader, lambda: self.auditor.model, self.config.own, self.folder, tell, claim
            )

    def settings(self, engine: ActivationEngine) -> StoreSettings:
        """What the vectors are bound to."""
        found = bound_to(self.auditor.store_settings(engine), self.own)
        return replace(found, vision=self.auditor.model.vision_digest) if self.reader.has_images else found

    def read(self, tokenizer: Encoder, choose: Choose | None = None) -> DatasetPass:
        """Check and count the whole dataset, and keep the tokens of all of it or of what ``choose`` picks."""
        with self.watch.timed("read"):
            self.pass_key = None if choose is not None else pass_key(self.reader, tokenizer, self.config.encoding)
            if self.pass_key is not None and (kept := kept_pass(self.folder, self.pass_key)) is not None:
                self.tokens = TokensAgain(self.reader, tokenizer, self.config.encoding, kept.index)
                return kept
            total = self.reader.source.num_rows or 0
            spool = None if self.reader.has_images else TokenSpool(beside=self.folder)
            data = pass_over(
                self.reader,
                tokenizer,
                self.config.encoding,
                on_progress=lambda done: self.on_progress("read", done, total),
                on_encoded=None if spool is None else spool.add,
                choose=choose,
            )
            # Pixels are no tokens to be kept: such rows are read once more.
            again = TokensAgain(self.reader, tokenizer, self.config.encoding, data.index)
            self.tokens = again if spool is None else spool
            return data

    def drawn(self, sample: int) -> Choose:
        """Takes about ``sample`` pairs of the dataset, by their ids: which ones depends on nothing else."""
        rows = self.reader.source.num_rows or sum(1 for _ in self.reader.rows())
        most = int(min(1.0, sample / max(1, rows)) * 16**8)
        return lambda pairs: [int(pair.pair_id[:8], 16) < most for pair in pairs]

    def look_at_rule(self, rule: Rule | None, data: DatasetPass) -> None:
        """Refuse a rule that cannot work on so many pairs, and say where it can flag nothing: now, not after hours."""
        probes, pairs = self.auditor.probes, len(data.index)
        if rule is not None:
            rule.check(pairs)
            rule.check_probes(probes)
        for note in notes_on(self.reader, pairs, probes, self.config.score, rule):
            self.warn(note)

    def warn(self, note: str | None) -> None:
        """Say ``note`` now, and keep it for whoever reads the audit."""
        if note is not None:
            self.notes += (note,)
            logger.warning(note)

    def compute(
        self, store: VectorStore, engine: ActivationEngine, blocks: npt.NDArray[np.int64], data: DatasetPass
    ) -> None:
        """Compute pairs into ``store``, a shard a block, in order; ``blocks`` [N] has each one's, -1 for none.

        Where ranks share one model, they agree on the path on samples of what each of them has read.
        """
        wanted = blocks >= 0
        total = int(wanted.sum())
        sample = [pair for pair in (data.longest_pair, *data.sample[:3]) if pair is not None]
        self.on_progress("vectors", 0, total)
        with self.watch.timed("vectors"), engine.in_step(sample):
            if not total:
                return
            numbered = zip(self.tokens.read(wanted), blocks[wanted], strict=True)
            with store.writer() as writer:
                shards = ([pair for pair, _ in block] for _, block in groupby(numbered, key=itemgetter(1)))
                compute_shards(engine, shards, writer.add, lambda done: self.on_progress("vectors", done, total))

    def finish(
        self, store: VectorStore, data: DatasetPass, model: ModelInfo, cost: ComputeCost, computed: int
    ) -> Audit:
        """Score ``store`` and write ``audit.json``; what an earlier audit derived from other scores goes."""
        self.watch.seconds["vectors"] = cost.seconds  # of all shares together
        rate = round(computed / cost.seconds, 3) if computed and cost.seconds else None
        path, reason = (cost.path, cost.path_reason) if computed else (None, "nothing had to be computed")
        vectors = Vectors(store, data.index, computed, path, str(reason))
        spent = cost.model_dump(exclude_unset=True, exclude={"path", "path_reason", "seconds"})
        ending = Ending(
            folder=self.folder,
            reader=self.reader,
            data=data,
            vectors=vectors,
            probes=self.auditor.probes,
            score=self.config.score,
            layers=self.auditor.layers,
            model=model,
            settings=self.config.to_json(),
            notes=self.notes,
        )
        return finish(
            ending,
            self.watch,
            {"pairs_per_second": rate, **spent},
            lambda done, total: self.on_progress("scores", done, total),
        )

    def model_info(self) -> ModelInfo:
        """M0 as ``audit.json`` describes it."""
        return ModelInfo.of(self.auditor.model, self.auditor.model.dtype)

    def cost(self, engine: ActivationEngine) -> ComputeCost:
        """What computing vectors took on this process, and how they were computed."""
        stats = engine.stats
        return ComputeCost(
            path=engine.path,
            path_reason=engine.path_reason,
            seconds=self.watch.seconds["vectors"],
            tokens_computed=stats.tokens_computed,
            tokens_in_sequences=stats.tokens_in_sequences,
            flops=2 * engine.parameters_per_token() * stats.tokens_computed,
            **machine(),
        )
