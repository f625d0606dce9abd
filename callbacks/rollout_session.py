"""A run that generates what it trains on: M0 reads the groups as they come, each a contrast by its advantages."""

from __future__ import annotations

import hashlib
import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from trl_attribution.activations import ActivationEngine, PairVectors
from trl_attribution.activations.config import Path as PassPath
from trl_attribution.audit.setup import notes_on
from trl_attribution.callbacks.capture import CaptureError
from trl_attribution.callbacks.online_dpo import OnlinePairHook
from trl_attribution.callbacks.pair_lookup import PairLookup
from trl_attribution.callbacks.proof import tolerance
from trl_attribution.callbacks.reference_model import reloaded
from trl_attribution.callbacks.reference_pass import loaded_copy
from trl_attribution.callbacks.rollouts import GENERATES, RolloutFiles, RolloutHook, Rows
from trl_attribution.callbacks.run_setup import RunSetup
from trl_attribution.callbacks.session import Finished, TrainingAudit
from trl_attribution.errors import AttributionError, SettingsError
from trl_attribution.models.fingerprint import fingerprint
from trl_attribution.pairs import EncodedPair, Encoding, Pair, PairReader, Reading, RowFault, Survey, encode_pairs
from trl_attribution.pairs.dataset_pass import DatasetPass, pass_over
from trl_attribution.pairs.examples import centered
from trl_attribution.pairs.identity import prompt_key
from trl_attribution.store.merging import part_folder
from trl_attribution.utils.distributed import ALONE, Ranks, is_sharded, random_state_kept
from trl_attribution.utils.dtypes import torch_dtype
from trl_attribution.utils.progress import Stopwatch

logger = logging.getLogger(__name__)

_READING = Reading(format="rollouts", on_bad_row="skip")
_STAGE = "rollouts"
_IN_PIECES = "the trainer's models are in pieces (ZeRO-3, FSDP2), and what it runs through them next would be disturbed"


@dataclass(frozen=True)
class _FirstGroup:
    """What M0 showed of one group by itself, to be compared with what it shows later."""

    encoded: EncodedPair
    pair: torch.Tensor
    """[1, L, D]."""


@dataclass(kw_only=True)
class RolloutAudit(TrainingAudit):
    """Reads, keeps and finally scores the groups that one run generates; every rank has one.

    Its dataset is known at the end only. Each group is computed on one rank, whichever generated it, by M0 itself: with
    the prompt once, up to the last layer asked for, without the LM head.

    Made by :func:`open_rollout_audit`.
    """

    trainer: Any
    files: RolloutFiles
    reader: PairReader = field(init=False)
    data: DatasetPass = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        is_online = not hasattr(self.trainer, GENERATES)
        self._hook = (OnlinePairHook if is_online else RolloutHook)(self.trainer, self.ranks, self._take)
        # Each path is tried out first, and one that fails would do so amid a pass of all ranks that share M0.
        path: PassPath = "plain" if self._is_shared else "auto"
        self._engine = ActivationEngine(self.reference.model, self.config.activations(self.layers, path))
        self._first: _FirstGroup | None = None

    def begin(self, *, is_resumed: bool) -> None:
        """Look at M0, and start to read what is generated."""
        self._hook.detach()  # of an attempt that ran out of memory (auto_find_batch_size)
        if self.ranks.is_main:
            self.files.begin(int(self.trainer.state.global_step))
        self.look_before(is_resumed=is_resumed)
        self._hook.attach()

    def micro_batch_done(self) -> None:
        """Nothing: groups are read where they are generated, however often they are trained on."""

    def resolve(self) -> None:
        """Nothing waits."""

    def step_done(self) -> None:
        """Nothing is due."""

    def save(self, *, at_end: bool = False) -> None:
        """Bring all vectors to disk, once M0 is seen to be what it was: by its first group, at the end by its weights.

        A collective.

        Raises:
            CaptureError: it is not.
        """
        self._save(self.ranks, at_end=at_end)

    def _save(self, ranks: Ranks, *, at_end: bool = False) -> None:
        if self._m0_has_moved(ranks, at_end=at_end):
            self.release()
            shutil.rmtree(part_folder(self.folder, self.ranks.rank), ignore_errors=True)
            raise CaptureError(
                f"M0 ({self.reference.source}) has changed while training, so the vectors read from it are another "
                "model's, and are dropped. What was generated is kept: audit it by itself, "
                f"trl-attribution audit {self.m0.name} {self.folder / 'parts' / 'rollouts'}"
            )
        self.recorder.write()

    def _m0_has_moved(self, ranks: Ranks, *, at_end: bool) -> bool:
        """Reading all weights takes as long as many steps, so it waits for the end; one group tells at any time."""
        if self._first is not None and ranks.any(self._differs(self._first)):
            return True
        if not at_end or self.reference.adapter is not None:
            return False
        with self.reference.as_m0():
            return ranks.any(fingerprint(self.reference.model, None).weights != self.m0.fingerprint.weights)

    def _differs(self, first: _FirstGroup) -> bool:
        with random_state_kept():
            again = self._vectors([first.encoded]).pair
        allowed = tolerance(torch_dtype(self.settings.compute_dtype))
        return not bool((again - first.pair).norm() <= allowed * first.pair.norm())  # what is no number differs

    def keep_what_was_read(self) -> None:
        """Bring the vectors to disk as the run ends with an error, which must stay the one that is raised."""
        try:
            if self._is_shared:
                raise CaptureError("it takes all ranks to see that M0 is what it was")
            self._save(ALONE)
        except (AttributionError, RuntimeError, OSError) as error:
            logger.error("the vectors read since the last save are not kept: %s", error)

    def release(self) -> None:
        """Take the hook off and let go of the files."""
        self._hook.detach()
        self.recorder.close()

    def finish(self, policy: Any = None) -> Finished | None:
        """Read the rollouts as the dataset that they have become, and end as any audit of a run.

        Nothing where no group teaches anything, which is said: training has not failed for it.

        Raises:
            AttributionError: the audit cannot be written; the parts stay.
        """
        self.save()
        with self.ranks.together():
            if self.ranks.is_main:
                self.files.finish()
        self.reader = PairReader(self.files.path, _READING)
        if all(isinstance(read, RowFault) for _, read in self.reader.each()):  # such as all rewards of a group alike
            logger.warning(
                "no audit: in every group all rewards were alike, so that none teaches anything. "
                "What was generated is in %s",
                self.files.path,
            )
            return None
        self.data = pass_over(self.reader, self.m0.encoder, self.encoding)
        self.notes = notes_on(self.reader, len(self.data.index), self.probes, self.config.score, self.config.rule)
        if self.before_after is not None:
            self.before_after.measure_on(self.data.sample)
        self._complete(is_resumed=False)  # of a generation that an earlier attempt was killed in
        return super().finish(policy)

    def _take(self, rows: Rows) -> None:
        start = time.perf_counter()
        with self.ranks.together(), random_state_kept():
            if self.ranks.is_main:
                self.files.add(rows)
            self._read(rows)
        seconds = self.stopwatch.seconds
        seconds[_STAGE] = seconds.get(_STAGE, 0.0) + time.perf_counter() - start

    def _read(self, rows: Rows) -> None:
        """Compute and score this rank's share of the groups in ``rows``."""
        everything = list(PairReader(rows, _READING).ending_with(self.m0.tokenizer.eos_token).each())
        mine = everything[self.ranks.rank :: self.ranks.world]
        groups = self._encoded(mine)
        self.recorder.counts.rows += len(mine)
        self.recorder.counts.unaudited += len(mine) - len(groups)
        found = self._vectors([one for _, one in groups])
        if self._first is None:
            for _, first in self._encoded(everything)[:1]:  # the same on all ranks, which may have to read it together
                self._first = _FirstGroup(first, self._vectors([first]).pair)
        self.recorder.keep([one.pair_id for _, one in groups], found.pair, found.context)
        self.online.score(found.pair, found.context)
        advantages = ([rows[place]["advantage"] for place in pair.all_rows] for pair, _ in groups)
        weights = [sum(map(abs, centered(group))) / 2 for group in advantages]
        self.online.push(found.pair, torch.tensor(weights), sum(len(row.members or (row,)) for row, _ in mine))

    def _encoded(self, read: Sequence[tuple[Any, Pair | RowFault]]) -> list[tuple[Pair, EncodedPair]]:
        """The groups in ``read`` that have a contrast, with their tokens."""
        pairs = [one for _, one in read if isinstance(one, Pair)]
        encoded = zip(pairs, encode_pairs(pairs, self.m0.encoder, self.encoding), strict=True)
        return [(pair, one) for pair, one in encoded if not isinstance(one, RowFault)]

    def _vectors(self, groups: Sequence[EncodedPair]) -> PairVectors:
        """Of ``groups``, or of none where another rank that shares M0 has some."""
        with self.reference.as_m0(), self._autocast(self._engine), self._engine.in_step():
            return self._engine.pair_vectors(groups)


def open_rollout_audit(setup: RunSetup, trainer: Any) -> RolloutAudit:
    """Have M0 at hand, claim the audit folder, and be ready to read what ``trainer`` generates. A collective.

    Args:
        setup: the run; its M0 is loaded once more where that does not stay.
        trainer: a GRPO, RLOO or online DPO trainer.

    Raises:
        AttributionError: a probe or the audit folder does not fit, or M0 cannot be had; nothing was written then.
    """
    encoding, folder, reference = Encoding(None), setup.folder, setup.reference
    setup.check()
    files = RolloutFiles(folder)
    if not trainer.state.global_step and not files.is_empty:
        raise SettingsError(
            f"output_dir: {folder} holds the rollouts of another run. Choose another folder, remove this one, or "
            "resume that run (resume_from_checkpoint)."
        )
    is_shared = is_sharded(reference.model)
    if is_shared:
        reference = replace(reference, reason=_IN_PIECES, stays=False)
    if not reference.stays:
        need = f"M0 reads what is generated, beside the policy ({reference.reason})"
        otherwise = "use DDP or ZeRO-2" if is_shared else "set beta above 0, so that the trainer keeps it"
        copy = reloaded(setup.m0, setup.m0.device, need, otherwise)
        m0, reference = replace(setup.m0, model=copy.model, keeps=copy.keeps), loaded_copy(reference, copy.model)
        setup = replace(setup, m0=m0, reference=reference)
    settings, compare = setup.store_settings(encoding), setup.compare(encoding, ())
    with setup.ranks.together():
        asked = setup.ranks.is_main or is_shared
        before_after = compare(reference, setup.ranks if is_shared else ALONE) if asked else None
    setup.claim(settings, _survey(trainer.train_dataset), "the trainer's prompts")
    return RolloutAudit(
        **setup.fields(settings, PairLookup(), 0),
        encoding=encoding,
        notes=(),
        compare=compare,
        before_after=before_after,
        stopwatch=Stopwatch(),
        trainer=trainer,
        files=files,
    )


def _survey(dataset: Any) -> Survey:
    """What stands for the prompts of a run, so that it is resumed with the same ones; of a stream nothing is known."""
    from datasets import Dataset

    digest, count = hashlib.sha256(), 0
    if isinstance(dataset, Dataset):
        for prompt in dataset["prompt"]:
            digest.update(prompt_key(prompt))
            count += 1
    return Survey(
        pairs=count,
        rows=count,
        unique=count,
        duplicates=[],
        contradictions=0,
        sources={},
        skipped=[],
        fingerprint=digest.hexdigest(),
    )
