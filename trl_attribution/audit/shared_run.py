"""An audit on several ranks, or as independent jobs: everyone computes a share, one process merges and scores."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from trl_attribution.audit.claim import FolderClaim, check_folder
from trl_attribution.audit.folder import Audit
from trl_attribution.audit.info import AuditInfo, ModelInfo
from trl_attribution.audit.own_responses import with_own_responses
from trl_attribution.audit.part_records import PartRecord, record_path, records_of, remove_parts, total_cost
from trl_attribution.audit.run import AuditRun
from trl_attribution.audit.saved import SavedAudit
from trl_attribution.audit.shares import Blocks, Share, held_by_any
from trl_attribution.errors import SettingsError, StoreError
from trl_attribution.models.sharding import asked_sharding
from trl_attribution.pairs import Encoder, Pair, Reading
from trl_attribution.pairs.dataset_pass import DatasetPass, PairIndex
from trl_attribution.pairs.own_responses import FILE_NAME
from trl_attribution.scoring import Rule
from trl_attribution.store import VectorStore
from trl_attribution.store.merging import merge_parts, parts_of
from trl_attribution.utils.distributed import Ranks
from trl_attribution.utils.shared_storage import await_visible, check_shared
from trl_attribution.utils.text import some

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class ShareReport:
    """What one job of an audit did."""

    share: Share
    folder: Path
    """Where its part of the vectors lies; of its main rank, where it ran on several."""
    computed: int
    """Pairs computed now, on all of the job's ranks."""
    dataset_pairs: int
    """Different pairs of the whole dataset, those included that cannot be encoded."""
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return {**vars(self), "share": str(self.share), "folder": str(self.folder)}


class SharedRun(AuditRun):
    """One audit under way that several processes take part in; this is what each of them does."""

    def audit_on(self, ranks: Ranks, rule: Rule | None) -> Audit:
        """The whole audit on all ``ranks``; those that are not the main one get it without index and scores."""
        data, part, _ = self._compute_share(Share(0, 1), ranks, rule)
        written = ranks.gather((str(part.path), len(part)))
        with ranks.together():
            found = None
            if ranks.is_main:
                self.warn(idle_note([pairs for _, pairs in written], self.config.shard_size))
                _await_parts([(Path(path), pairs) for path, pairs in written])
                found = self._merged(data)
        if found is not None:
            return found
        await_visible(
            lambda: (self.folder / "audit.json").exists() and (self.vectors / "store.json").exists(),
            f"{self.folder}: the audit that the main rank has written there has not shown up here",
        )
        return _as_others_see_it(self.folder, self.reader.resolved)

    def compute_share(self, share: Share, ranks: Ranks) -> ShareReport:
        """Compute what ``share`` lacks into the parts of the audit folder; nothing is merged or scored."""
        data, part, computed = self._compute_share(share, ranks, None)
        return ShareReport(
            share=share,
            folder=part.path,
            computed=sum(ranks.gather(computed)),
            dataset_pairs=data.survey.unique,
            seconds=round(self.watch.seconds["vectors"], 3),
        )

    def merge(self, rule: Rule | None) -> Audit:
        """Merge what all jobs computed, score it and finish the audit; M0's weights are not needed."""
        check_folder(self.folder)
        self.read_own_responses()
        parts = parts_of(self.folder)
        blocks = Blocks(self._base(), parts, None, self.config.shard_size)
        data = self.read(self._merging_encoder(), choose=lambda batch: _all(blocks, batch))
        self.look_at_rule(rule, data)
        settings = (parts[0] if parts else VectorStore.open(self.vectors)).settings
        FolderClaim(self.folder, self.vectors, settings, data.survey, self.reader.source.name).check()
        self._check_complete(blocks, data)
        return self._merged(data)

    def _compute_share(self, share: Share, ranks: Ranks, rule: Rule | None) -> tuple[DatasetPass, VectorStore, int]:
        """Read, claim, compute: what was read (whole on the rank that merges), the part, and how many pairs are new."""
        own = share.of_rank(ranks)
        merges = ranks.is_main and share.count == 1
        with ranks.together():
            check_folder(self.folder)
        # Where each rank loads a piece of the model, loading is a collective already: a second one could wait forever.
        with nullcontext() if asked_sharding() else ranks.together():
            model = self.auditor.model
        with ranks.together():
            self.read_own_responses()
            engine = self.auditor.new_engine()
            blocks = Blocks(self._base(), parts_of(self.folder), own, self.config.shard_size)
            # Whoever merges has to know all pairs; the others tokenize only their own.
            data = self.read(model.encoder, (lambda batch: _all(blocks, batch)) if merges else blocks.add)
            engine.limits.check(data.highest_token, data.longest)
            if merges:
                self.look_at_rule(rule, data)
        missing = blocks.numbers(data.index)
        settings = self.settings(engine)
        with ranks.together():
            if blocks.base is not None:
                VectorStore.create(self.vectors, settings)  # refuses other settings; nothing is written
        name = self.reader.source.name
        claim = FolderClaim(self.folder, self.vectors, settings, data.survey, name, part=own.index)
        with claim.released_on_failure():
            with ranks.together():
                store = claim.take()
                before = PartRecord.read(record_path(store.path))
                record = PartRecord(
                    share=str(share),
                    began=time.time(),
                    model=self.model_info(),
                    cost=before.cost if before else None,
                )
                record.write(record_path(store.path))
            if share.count == 1:
                check_shared(self.folder, ranks)  # now, not when the vectors are to be merged
            with ranks.together():
                self.compute(store, engine, missing, data)
                if (missing >= 0).any():
                    record.model_copy(update={"cost": self.cost(engine)}).write(record_path(store.path))
        return data, store, int((missing >= 0).sum())

    def _merged(self, data: DatasetPass) -> Audit:
        """The finished audit, made of all parts; they are removed at the very end."""
        parts = parts_of(self.folder)
        ids = data.index.pair_ids
        if parts:
            store = merge_parts(parts, self.vectors, parts[0].settings, ids, self.config.shard_size)
        else:
            store = VectorStore.open(self.vectors)
        store.verify()
        computed = int(held_by_any(parts, ids).sum())
        audit = self.finish(store, data, self._known_model(), total_cost(records_of(parts)), computed)
        remove_parts(self.folder)
        return audit

    def read_own_responses(self) -> None:
        """Read M0's own responses where examples need them; processes side by side do not draw them.

        Raises:
            SettingsError: they would have to be drawn.
        """
        config, drawn = self.config.own, self.folder / FILE_NAME
        if config.file is None and drawn.exists():
            config = replace(config, file=str(drawn))
        if config.file is None and self.reader.kind in ("kto", "sft") and any(one.lacks_own for one in self.reader):
            raise SettingsError(
                f"own responses: {self.reader.source.name} needs M0's own responses, and several processes must not "
                "draw them at once. Give them (--own-responses FILE): an audit on one process leaves them in "
                f"{FILE_NAME} of its folder, of whatever dataset has the prompts."
            )
        self.own = with_own_responses(self.reader, lambda: self.auditor.model, config, self.folder)

    def _base(self) -> VectorStore | None:
        return VectorStore.open(self.vectors) if (self.vectors / "store.json").exists() else None

    def _known_model(self) -> ModelInfo:
        """M0 as the first part describes it, or an audit that was merged already.

        Raises:
            StoreError: there is neither.
        """
        if records := records_of(parts_of(self.folder)):
            return records[0].model
        if (info := AuditInfo.read(self.folder / "audit.json")) is not None:
            return info.model
        raise StoreError(
            f"there is nothing to merge in {self.folder}: no shard has been computed. Run `trl-attribution audit` "
            "with --shard 1/n to --shard n/n and this output folder first."
        )

    def _merging_encoder(self) -> Encoder:
        """M0's tokenizer or processor, once parts, probes and settings are known to fit together.

        Raises:
            ModelError: the model named now is another than that of the parts.
            ProbeError: a probe was made with another M0.
            StoreError: parts were made with other settings than those asked for, or there are none.
        """
        known = self._known_model().fingerprint
        for probe in self.auditor.probes:
            probe.check_model(known)
        stores = [*parts_of(self.folder), *([base] if (base := self._base()) else [])]
        self.auditor.check_stored(stores[0].settings, stores[0].path)
        return self.auditor.encoder_for(known, images=self.reader.has_images)

    def _check_complete(self, blocks: Blocks, data: DatasetPass) -> None:
        missing = blocks.numbers(data.index)
        missing = missing[missing >= 0]
        if not len(missing):
            return
        records = records_of(parts_of(self.folder))
        count = Share.parse(max(records, key=lambda record: record.began).share).count if records else 1
        lacking = Counter((missing % count).tolist())
        named = some([f"{Share(index, count)} ({pairs:,} pairs)" for index, pairs in sorted(lacking.items())], 20)
        raise StoreError(
            f"{len(missing):,} of {len(data.index):,} pairs have not been computed. Missing shards: {named}. "
            "Run `trl-attribution audit` with --shard for each of them, then --merge again."
        )


def idle_note(pairs: Sequence[int], shard_size: int) -> str | None:
    """What to say of ranks that had nothing to compute, where others had; ``pairs`` are those of each rank."""
    idle = sum(not count for count in pairs)
    if idle in (0, len(pairs)):
        return None
    fitting = max(1, sum(pairs) // len(pairs))
    return (
        f"{idle} of {len(pairs)} processes had nothing to compute: pairs are dealt out in blocks of {shard_size}. With "
        f"--shard-size {fitting} (shard_size) there is a block for each."
    )


def _as_others_see_it(folder: Path, reading: Reading) -> Audit:
    """The finished audit on the ranks that did not merge it: without index and scores."""
    saved = SavedAudit.open(folder)
    nothing = PairIndex((), np.empty(0, dtype=np.int64), pa.array([], pa.string()).dictionary_encode())
    return Audit(folder, saved.info, saved.store(), nothing, None, (), reading, is_main=False)


def _all(blocks: Blocks, pairs: Sequence[Pair]) -> list[bool]:
    """Deal ``pairs`` out, and have all of them tokenized."""
    blocks.add(pairs)
    return [True] * len(pairs)


def _await_parts(written: Sequence[tuple[Path, int]]) -> None:
    """Wait until the parts that ranks have written can be seen here."""

    def visible() -> bool:
        return all((path / "store.json").exists() and len(VectorStore.open(path)) >= pairs for path, pairs in written)

    await_visible(visible, f"{written[0][0].parent}: what other ranks have written there has not shown up here")
