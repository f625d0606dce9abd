"""AttributionCallback: audits the pairs of a training run while it runs."""

from __future__ import annotations

import inspect
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.text import Text
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trl_attribution.audit.setup import load_probes
from trl_attribution.behaviors import Judge
from trl_attribution.callbacks.checkpoint import Identity, m0_identity
from trl_attribution.callbacks.config import CallbackConfig, configured
from trl_attribution.callbacks.dataset import encoding_of, prepared_rows, rows_trained_on
from trl_attribution.callbacks.online_dpo import add_to_stats, clear_stats
from trl_attribution.callbacks.online_scores import Window, flagged_share
from trl_attribution.callbacks.opening import open_training_audit
from trl_attribution.callbacks.reference_model import read_m0
from trl_attribution.callbacks.reference_pass import (
    ReferenceModel,
    dedicated,
    precompute_reference,
)
from trl_attribution.callbacks.rollout_session import open_rollout_audit
from trl_attribution.callbacks.rollouts import check_rollouts
from trl_attribution.callbacks.run_setup import RunSetup
from trl_attribution.callbacks.session import Finished, TrainingAudit
from trl_attribution.callbacks.skipping import skip_flagged
from trl_attribution.callbacks.trainer_kind import TrainerKind, kind_of, kind_of_arguments
from trl_attribution.callbacks.vision import check_alike, watch_images
from trl_attribution.errors import SettingsError
from trl_attribution.manifest.weighted_loss import weigh_by_column
from trl_attribution.models import LoadedModel
from trl_attribution.pairs import PairReader, Reading, tokenizer_of
from trl_attribution.probes import Probe, ProbeRegistry
from trl_attribution.utils.compat import check_versions
from trl_attribution.utils.distributed import current_ranks
from trl_attribution.utils.kinds import EXAMPLES

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)
_STREAMED = (
    "the dataset is a stream: its first {:,} rows at most are read, before the first step, for that many are trained "
    "on in max_steps; what may follow is not audited"
)


class AttributionCallback(TrainerCallback):
    """Audits a run of one of TRL's trainers (:mod:`trl_attribution.callbacks.trainer_kind`) while it trains.

    ``DPOTrainer`` runs M0 over every batch for its loss; hooks on that forward read the vectors of every pair, at no
    cost worth mentioning. With other trainers, M0 passes over the dataset once before the first step; of
    ``GRPOTrainer``, ``RLOOTrainer`` and ``OnlineDPOTrainer`` it reads each group of completions as it is generated.
    When training ends, the audit folder holds vectors, scores and manifests, as after ``trl-attribution audit``.

    Example:
        >>> trainer = DPOTrainer(model, args=args, train_dataset=dataset)  # doctest: +SKIP
        >>> trainer.add_callback(AttributionCallback(trainer, probes="probes/", output_dir="audit/"))  # doctest: +SKIP
        >>> trainer.train()  # doctest: +SKIP

    Args:
        trainer: the trainer. Without it (``DPOTrainer(..., callbacks=[AttributionCallback(...)])``) ``dataset`` has to
            be given, and M0 passes over the dataset before the first step, unless ``precompute_ref_log_probs`` lets it
            be read from TRL's own pass.
        probes: a registry folder, a registry, or probes; over ``config.probes``.
        dataset: the dataset that the trainer was given; needed without ``trainer``, for trainers that change its texts
            or its order, and where plain-text responses ended with the EOS token before TRL saw them.
        judge: a rule, or a callable ``judge(prompt, response)`` that is true for a response that shows a behavior;
            over ``config.judge``, under a rule that the behavior's own file gives.
        config: the settings; single ones can be given by name instead.
        **settings: fields of :class:`CallbackConfig`, over those of ``config``.

    Raises:
        SettingsError: an unknown setting, one that contradicts another, or a trainer that cannot be audited.
    """

    def __init__(
        self,
        trainer: Any = None,
        *,
        probes: str | Path | ProbeRegistry | Sequence[Probe] | None = None,
        dataset: str | Path | Dataset | Sequence[Mapping[str, Any]] | None = None,
        judge: str | Judge | None = None,
        config: CallbackConfig | None = None,
        **settings: Any,
    ) -> None:
        check_versions()
        if isinstance(judge, str):
            settings["judge"], judge = judge, None
        self.config = configured(config, settings)
        self.finished: Finished | None = None
        """What the last run left behind, on the main rank."""
        self._probes = load_probes(
            self.config.probes if probes is None else probes,
            self.config.score,
        )
        self._trainer = trainer
        self._dataset = dataset
        self._judge = judge
        self._session: TrainingAudit | None = None
        self._saved_at: int | None = None
        self._recent: deque[Window] = deque(maxlen=self.config.stop_window)
        if trainer is None:
            self._check_alone()
        else:
            self._check_trainer(kind_of(trainer))
            self._image_ids = watch_images(trainer)  # a training loop takes the collator before it calls us
            if self.config.weights is not None:
                weigh_by_column(trainer, self.config.weights)
            if self.config.on_flag == "skip":
                skip_flagged(trainer, lambda: self._session)
            trainer.train = _watched(trainer.train, self)

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """With ``precompute_ref_log_probs`` the trainer's pass over its datasets is next: read it."""
        if self._trainer is not None:
            return
        trainer = _calling_trainer(self)
        kind = kind_of_arguments(args)
        if kind.examples == "rollouts":
            raise SettingsError(
                f"trainer: what a {kind.name} generates is seen through it alone. Give it to the callback, and "
                "add that afterwards: trainer.add_callback(AttributionCallback(trainer, ...))"
            )
        reads = kind.reads_precompute and getattr(args, "precompute_ref_log_probs", False)
        # With FSDP, TRL loads a model for this pass alone and lets go of it.
        if reads and not trainer.is_fsdp_enabled:
            self._read_precompute(trainer, args, state, kwargs)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start to read."""
        if self._session is None:
            self._session = self._open(args, state, kwargs, self._reference())
        try:
            self._session.begin(is_resumed=state.global_step > 0)
        except BaseException:
            self.close()
            raise

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """One micro-batch of an accumulated step is done."""
        if self._session is not None:
            self._session.micro_batch_done()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """A step is done: count, and where a log is due, add this window's metrics to it."""
        if self._session is not None:
            self._session.micro_batch_done()
            self._session.step_done()
            self._log_window(state, control)
            self._save_before_checkpoint(args, state, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """An epoch is done; with ``logging_strategy="epoch"`` a log is due."""
        if self._session is not None:
            self._log_window(state, control)
            self._save_before_checkpoint(args, state, control)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """A checkpoint was written, perhaps one that nobody announced: what was read up to it is on disk then too."""
        self._save_once(state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Merge, score, write the manifests and show the result."""
        if self._session is None:
            return
        try:
            self.finished = self._session.finish(kwargs["model"])
        finally:
            self.close()
        if self.finished is not None:
            self._show(self.finished)

    def close(self) -> None:
        """Take the hooks off and let go of the files. Called by itself at the end, and when training fails."""
        session, self._session, self._saved_at = self._session, None, None
        self._recent.clear()
        if session is not None:
            session.release()

    def keep_what_was_read(self) -> None:
        """Called when training fails: write what was read so far, for a resumed run, and :meth:`close`."""
        try:
            if self._session is not None:
                self._session.keep_what_was_read()
        finally:
            self.close()

    def _check_trainer(self, kind: TrainerKind) -> None:
        if self.config.weights is not None and not kind.can_skip:
            raise SettingsError(f"weights: only a DPOTrainer's pairs can be weighed, not {kind.name}'s; leave it out")
        if kind.examples == "rollouts":
            check_rollouts(self._trainer, self.config, self._dataset)
            return
        if self._dataset is None and (reason := kind.texts_gone(self._trainer)) is not None:
            raise SettingsError(f"dataset: {reason}; give the callback the one that it was given")
        if not kind.writes and self.config.behaviors is not None:
            raise SettingsError("behaviors: a reward model writes no responses to look at; leave them out")
        if self.config.on_flag == "skip":
            self._check_skip(kind)
        if self._dataset is None:
            prepared_rows(self._trainer.train_dataset, kind.examples)

    def _check_skip(self, kind: TrainerKind) -> None:
        if not kind.can_skip or not kind.reference(self._trainer).is_free:
            raise SettingsError(
                "on_flag='skip' cannot work here: no reference forward runs within the step to decide by. Use "
                "on_flag='log' and train again on the filtered dataset, or on_flag='stop'."
            )

    def _check_alone(self) -> None:
        if self._dataset is None:
            raise SettingsError(
                "dataset: a callback that is not given the trainer sees token ids only. Give it the dataset that the "
                "trainer is given (dataset=...), or add it afterwards: "
                "trainer.add_callback(AttributionCallback(trainer, ...))"
            )
        if self.config.on_flag != "log":
            raise SettingsError(f"on_flag={self.config.on_flag!r} acts on the trainer: give the callback the trainer")
        if self.config.weights is not None:
            raise SettingsError("weights: they act on the trainer's loss: give the callback the trainer")

    def _open(
        self, args: TrainingArguments, state: TrainerState, kwargs: dict[str, Any], reference: ReferenceModel
    ) -> TrainingAudit:
        processor = kwargs["processing_class"]
        tokenizer = tokenizer_of(processor)
        is_resumed = state.global_step > 0
        identity = self._identity(reference, tokenizer, is_resumed=is_resumed)
        model = reference.model
        m0 = LoadedModel(model, tokenizer, str(model.config.name_or_path), identity.fingerprint)
        if processor is not tokenizer:
            m0 = replace(m0, processor=processor)
        if not identity.is_in_memory:
            reason = "the adapter's initialization changed the model below it, so the checkpoint alone is M0"
            reference = replace(dedicated(reference, reason), is_m0=False, stays=False)
        trainer = self._trainer or _calling_trainer(self)
        kind = kind_of(trainer)
        setup = RunSetup(
            config=self.config,
            probes=self._probes,
            m0=m0,
            reference=reference,
            compute_dtype=_compute_dtype(args, m0),
            ranks=current_ranks(),
            judge=self._judge,
        )
        if kind.examples == "rollouts":
            return open_rollout_audit(setup, trainer)
        rows, notes = self._dataset, [kind.note(trainer)]
        if rows is None:
            most = rows_trained_on(trainer.train_dataset, args)
            rows = prepared_rows(trainer.train_dataset, kind.examples, most)
            notes += [] if most is None else [_STREAMED.format(most)]
        reader = PairReader(rows, Reading(format=kind.reading_format, on_bad_row="skip"))
        check_alike(reader, trainer)
        told = [one for one in notes if one]
        return open_training_audit(setup, reader, encoding_of(args), notes=told, is_resumed=is_resumed)

    def _reference(self) -> ReferenceModel:
        trainer = self._trainer or _calling_trainer(self)
        found = kind_of(trainer).reference(trainer)
        if self._trainer is None:
            return dedicated(found, "the callback was not given the trainer")
        return replace(found, pair_ids=self._image_ids)

    def _read_precompute(
        self, trainer: Any, args: TrainingArguments, state: TrainerState, about: dict[str, Any]
    ) -> None:
        """Read the pass over the training data, which is the first that ``trainer`` makes."""
        precompute = trainer._precompute_ref_logps  # noqa: SLF001  # no event tells that the pass begins

        def read_precompute(*details: Any) -> Any:
            trainer._precompute_ref_logps = precompute  # noqa: SLF001
            self._session = self._open(args, state, about, precompute_reference(trainer))
            self._session.begin_precompute()
            try:
                found = precompute(*details)
                self._session.end_precompute()
            except BaseException:
                self.close()
                raise
            return found

        trainer._precompute_ref_logps = read_precompute  # noqa: SLF001

    def _identity(self, reference: ReferenceModel, tokenizer: Any, *, is_resumed: bool) -> Identity:
        noted = read_m0(Path(self.config.output_dir)) if is_resumed else None
        if noted is not None and not reference.stays:  # the policy, which is another by now
            return noted
        return m0_identity(reference, tokenizer, current_ranks(), noted)

    def _log_window(self, state: TrainerState, control: TrainerControl) -> None:
        clear_stats(self._trainer)
        if not control.should_log or self._session is None:
            return
        window = self._session.close_window()
        if window is None:
            return
        self._add_to_logs(window.metrics)
        self._recent.append(window)
        share, is_full = flagged_share(self._recent), len(self._recent) == self.config.stop_window
        if self.config.on_flag == "stop" and is_full and share > self.config.stop_share:
            self._session.stopped_at = state.global_step
            control.should_training_stop = True
            logger.warning(
                "step %d: %.1f%% of the last %s are flagged, more than stop_share=%s: training ends here",
                state.global_step,
                100 * share,
                EXAMPLES[kind_of(self._trainer).examples].counted(sum(one.pairs for one in self._recent)),
                self.config.stop_share,
            )

    def _save_before_checkpoint(self, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> None:
        """What was read goes to disk before a checkpoint: a run killed after both resumes there and lacks nothing."""
        may_follow = control.should_evaluate and args.save_strategy == "best"
        if control.should_save or may_follow:
            self._save_once(state)

    def _save_once(self, state: TrainerState) -> None:
        """Once a step: of rollouts, M0 reads a group again each time."""
        if self._session is not None and self._saved_at != state.global_step:
            self._session.save()
            self._saved_at = state.global_step

    def _add_to_logs(self, metrics: Mapping[str, float]) -> None:
        """Where TRL's trainers keep what goes into their next log."""
        kept: Any = getattr(self._trainer, "_metrics", None)
        kept = getattr(self._trainer, "_stored_metrics", None) if kept is None else kept
        if kept is None:
            add_to_stats(self._trainer, metrics)
            return
        for name, value in metrics.items():
            kept["train"][name].append(value)

    def _show(self, finished: Finished) -> None:
        from trl_attribution.report import change, terminal
        from trl_attribution.report.texts import ListedPairs
        from trl_attribution.utils.tables import people_console, tell

        console = people_console()
        if finished.findings.changes:
            tell(console, change.rates_table(finished.findings.changes))
        tell(console, *(Text(note) for note in finished.findings.notes))
        audit = finished.audit
        if finished.flagged is None:
            audited = audit.info.dataset.kind.counted(len(audit.index))
            tell(console, f"{audited} audited in {audit.folder}; without probes nothing is scored.")
            return
        assert audit.source is not None  # the dataset of this run
        listed = ListedPairs(audit.source, audit.reading, audit.own_responses)
        tell(console, *terminal.run_ending(finished.flagged, finished.manifests, finished.report, listed))


def _watched(train: Callable[..., Any], callback: AttributionCallback) -> Callable[..., Any]:
    """``trainer.train`` that tells ``callback`` when training fails: a trainer tells its callbacks nothing then."""

    def watched_train(*args: Any, **kwargs: Any) -> Any:
        try:
            return train(*args, **kwargs)
        except BaseException:
            callback.keep_what_was_read()
            raise

    return watched_train


def _calling_trainer(callback: TrainerCallback) -> Any:
    """The trainer that is telling ``callback`` of an event: no event names it, and M0 may be in no other place.

    Raises:
        SettingsError: no trainer is.
    """
    frame = inspect.currentframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if callback in getattr(getattr(caller, "callback_handler", None), "callbacks", ()):
            return caller
        frame = frame.f_back
    raise SettingsError("the callback sees no trainer: give it one (AttributionCallback(trainer, ...))")


def _compute_dtype(args: TrainingArguments, m0: LoadedModel) -> str:
    """What M0's products are computed in: autocast decides over the weights' dtype."""
    if args.bf16:
        return str(torch.bfloat16).removeprefix("torch.")
    if args.fp16:
        return str(torch.float16).removeprefix("torch.")
    return m0.dtype
