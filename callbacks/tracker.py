"""AttributionTracker: audits the pairs of a training loop of one's own while it runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedTokenizerBase

from trl_attribution.audit.setup import load_probes
from trl_attribution.behaviors import Judge
from trl_attribution.callbacks.capture import CapturedBatch, CaptureError, Tokens
from trl_attribution.callbacks.checkpoint import m0_identity
from trl_attribution.callbacks.config import CallbackConfig, configured
from trl_attribution.callbacks.opening import open_training_audit
from trl_attribution.callbacks.reference_pass import loop_reference
from trl_attribution.callbacks.run_setup import RunSetup
from trl_attribution.callbacks.session import Finished, TrainingAudit
from trl_attribution.errors import SettingsError
from trl_attribution.models import LoadedModel
from trl_attribution.pairs import Encoding, PairReader, Reading
from trl_attribution.probes import Probe, ProbeRegistry
from trl_attribution.utils.compat import check_versions
from trl_attribution.utils.distributed import current_ranks

if TYPE_CHECKING:
    from datasets import Dataset

Side = Literal["both", "chosen", "rejected"]
_SIDES = ("both", "chosen", "rejected")
_AUTOCAST = {"bf16": "bfloat16", "fp16": "float16"}


class AttributionTracker:
    """Audits a preference-training loop of your own, with or without Accelerate, while it runs.

    The loop runs a reference model over every batch for its loss. Around that forward, :meth:`batch` says which tokens
    are responses; hooks read the vectors of every pair. At the end of the ``with`` block the audit folder holds
    vectors, scores and manifests. On an exception the hooks come off and what was read is kept in the folder; the same
    loop, started again with the same folder, adds what is missing.

    Example:
        >>> with AttributionTracker(reference, tokenizer, dataset, probes="probes/") as tracker:  # doctest: +SKIP
        ...     for batch in loader:
        ...         with tracker.batch(batch["input_ids"], batch["attention_mask"], batch["completion_mask"]):
        ...             reference_logits = reference(batch["input_ids"], attention_mask=batch["attention_mask"]).logits

    Args:
        reference_model: M0 as the loop runs it: a model, one that Accelerate, DDP or DeepSpeed has wrapped, or a policy
            with a PEFT adapter that the loop disables for the reference forward.
        tokenizer: M0's tokenizer.
        dataset: the pairs trained on: a file, a folder, a Hub id, a ``Dataset``, or a list of rows.
        max_length: the loop's limit for prompt and response together, None for none. The loop's tokens have to be
            those of TRL (:func:`trl_attribution.pairs.encode_pairs`): by them a row of a batch is known again.
        truncation_mode: which end of a longer sequence stays, ``keep_start`` or ``keep_end``.
        probes: a registry folder, a registry, or probes; over ``config.probes``.
        reading: how the dataset's columns become pairs; rows that are none are left out if it is not given.
        policy: the model that is trained; with it, ``behaviors`` are sampled before and after the loop, and the drift
            of its layers is measured.
        judge: ``judge(prompt, response)`` is true for a response that shows a behavior; over ``config.judge``.
        config: the settings; single ones can be given by name instead.
        **settings: fields of :class:`CallbackConfig`, over those of ``config``.

    Raises:
        SettingsError: an unknown setting, or one that a loop of one's own cannot follow.
    """

    def __init__(
        self,
        reference_model: torch.nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        dataset: str | Path | Dataset | Sequence[Mapping[str, Any]],
        *,
        max_length: int | None = None,
        truncation_mode: str = "keep_start",
        probes: str | Path | ProbeRegistry | Sequence[Probe] | None = None,
        reading: Reading | None = None,
        policy: torch.nn.Module | None = None,
        judge: Judge | None = None,
        config: CallbackConfig | None = None,
        **settings: Any,
    ) -> None:
        check_versions()
        self.config = configured(config, settings)
        if self.config.on_flag != "log":
            raise SettingsError(
                f"on_flag={self.config.on_flag!r}: the loop is yours, so act in it on "
                "tracker.metrics()['attribution/flagged_fraction']; the tracker itself only logs"
            )
        if self.config.weights is not None:
            raise SettingsError("weights: the loop is yours, and so is its loss: multiply by each pair's weight there")
        if self.config.behaviors is not None and policy is None:
            raise SettingsError(
                "behaviors: to sample after the loop as well as before it, the tracker needs the model that is "
                "trained: AttributionTracker(..., policy=model)"
            )
        self.finished: Finished | None = None
        """What the last run left behind, on the main rank."""
        self._probes = load_probes(self.config.probes if probes is None else probes, self.config.score)
        self._reference = loop_reference(reference_model, policy)
        self._policy, self._judge = policy, judge
        self._tokenizer, self._dataset = tokenizer, dataset
        self._encoding = Encoding(max_length, truncation_mode)
        self._reading = reading or Reading(on_bad_row="skip")
        self._session: TrainingAudit | None = None
        self._expected: Tokens | None = None
        self._seen: list[CapturedBatch] = []
        self._halves: dict[str, CapturedBatch] = {}

    def __enter__(self) -> Self:
        """Read the dataset, claim the audit folder, sample from M0 what is to be compared, put the hooks on.

        A collective.

        Raises:
            AttributionError: the dataset, a probe or the folder does not fit; nothing was written then.
        """
        model = self._reference.model
        identity = m0_identity(self._reference, self._tokenizer, current_ranks())
        if not identity.is_in_memory:
            raise SettingsError(
                "reference_model: the adapter's initialization has changed the model below it, so that without the "
                "adapter it is not M0. Give a frozen reference model without adapter."
            )
        m0 = LoadedModel(model, self._tokenizer, str(model.config.name_or_path), identity.fingerprint)
        setup = RunSetup(
            config=self.config,
            probes=self._probes,
            m0=m0,
            reference=self._reference,
            compute_dtype=_compute_dtype(m0),
            ranks=current_ranks(),
            judge=self._judge,
        )
        reader = PairReader(self._dataset, self._reading)
        if reader.has_images:
            raise SettingsError(
                "dataset: it holds images, and the tracker knows a batch's pairs by their tokens, which do not tell "
                "images apart. Use TRL's DPOTrainer with AttributionCallback, or audit it: trl-attribution audit"
            )
        self._session = open_training_audit(setup, reader, self._encoding)
        try:
            self._session.look_before(is_resumed=False)
            self._session.passes.attach(self._reference, self._describe, self._seen.append)
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write the audit (a collective); where an exception ends the loop, keep what was read instead."""
        assert self._session is not None
        try:
            if error is None:
                self._check_whole()
                self.finished = self._session.finish(self._policy)
            else:
                self._session.keep_what_was_read()
        finally:
            self._release()

    @contextmanager
    def batch(
        self, input_ids: Tensor, attention_mask: Tensor, completion_mask: Tensor, side: Side = "both"
    ) -> Iterator[None]:
        """Read the one forward of the reference model that runs inside the block.

        Args:
            input_ids: [2B, T], the B chosen sequences first; [B, T] where ``side`` names one of the two.
            attention_mask: the same shape, 1 for tokens, 0 for padding.
            completion_mask: the same shape, 1 for tokens of a response (``labels != -100``).
            side: ``both`` in one forward, or ``chosen`` and ``rejected`` in two, in any order; their T may differ.

        Raises:
            CaptureError: none or several forwards ran, or one over other tokens; or the halves do not fit.
        """
        if not self._halves:
            self._running().step_done()  # the step before is over, so the model can be run without disturbing it
        if not self._running().passes.is_reading:  # what it showed was not M0's, which has been read by itself since
            yield
            return
        self._expect(Tokens(input_ids.detach(), attention_mask.detach(), completion_mask.detach() != 0), side)
        try:
            yield
        except BaseException:
            self._seen.clear()
            raise
        finally:
            self._expected = None
        if len(self._seen) != 1:
            times = len(self._seen)
            self._seen.clear()
            raise CaptureError(
                f"{times} forwards of the reference model ran inside tracker.batch(), not 1. Put the one forward of "
                "this batch inside it, and give the tracker the model that the loop runs"
            )
        self._take(self._seen.pop(), side)

    def metrics(self) -> dict[str, float]:
        """What goes into the loop's log, over the pairs since the last call on all ranks together. A collective.

        Returns:
            ``attribution/NAME/mean``, ``/max`` and ``/share_above`` by probe, and ``attribution/flagged_fraction``;
            empty where no pair was seen or there are no probes.
        """
        self._check_whole()
        window = self._running().close_window()
        return {} if window is None else window.metrics

    def save(self) -> None:
        """Bring all that was read to disk: call it with each checkpoint, so that a resumed run lacks nothing."""
        self._check_whole()
        self._running().save()

    def _running(self) -> TrainingAudit:
        if self._session is None:
            raise SettingsError("the tracker is not running: put the loop inside `with tracker:`")
        return self._session

    def _expect(self, tokens: Tokens, side: Side) -> None:
        self._running()
        if side not in _SIDES:
            raise SettingsError(f"side: {side!r} is unknown; choose {', '.join(_SIDES)}")
        shapes = {tuple(one.shape) for one in (tokens.input_ids, tokens.attention_mask, tokens.response_mask)}
        if len(shapes) != 1 or tokens.input_ids.dim() != 2:
            raise CaptureError(f"input_ids, attention_mask and completion_mask have unlike shapes: {sorted(shapes)}")
        if side == "both" and len(tokens.input_ids) % 2:
            raise CaptureError(
                f"a batch of {len(tokens.input_ids)} sequences has no chosen and rejected halves; for one half at a "
                "time say side='chosen' and side='rejected'"
            )
        if side in self._halves or (side == "both" and self._halves):
            raise CaptureError(f"the {', '.join(self._halves)} half of the last batch has no other half yet")
        self._expected = tokens

    def _describe(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tokens | None:
        expected = self._expected
        if expected is None:
            return None
        if not self._reference.is_training_pass():
            raise CaptureError(
                "the policy's adapter is on in the reference forward: run it inside `with model.disable_adapter():`"
            )
        run = kwargs.get("input_ids", args[0] if args else None)
        if run is None or not _same(run, expected.input_ids):
            raise CaptureError("the forward inside tracker.batch() is over other tokens than the batch it was told of")
        # Copies: they are looked at later, and a loop may write its next batch into the same memory.
        return Tokens(
            expected.input_ids.to(run.device, copy=True),
            expected.attention_mask.to(run.device, copy=True),
            expected.response_mask.to(run.device, copy=True),
        )

    def _take(self, batch: CapturedBatch, side: Side) -> None:
        session = self._running()
        if side == "both":
            session.recorder.add(batch)
        else:
            self._halves[side] = batch
            if len(self._halves) < 2:
                return
            chosen, rejected = self._halves["chosen"], self._halves["rejected"]
            self._halves.clear()
            session.recorder.add(_joined(chosen, rejected))
        if session.recorder.is_full:
            session.passes.resolve()

    def _check_whole(self) -> None:
        if self._halves:
            raise CaptureError(
                f"the {', '.join(self._halves)} half of the last batch has no other half: it would be lost"
            )

    def _release(self) -> None:
        if self._session is not None:
            self._session.release()
        self._session = self._expected = None
        self._seen.clear()
        self._halves.clear()


def _same(run: Tensor, told: Tensor) -> bool:
    if run.shape != told.shape:
        return False
    # A comparison makes the device wait; the very same memory needs none.
    return run.data_ptr() == told.data_ptr() or torch.equal(run, told.to(run.device))


def _joined(chosen: CapturedBatch, rejected: CapturedBatch) -> CapturedBatch:
    """Two halves [B, T] of a batch as one [2B, T]; the shorter one is padded."""
    if len(chosen.means) != len(rejected.means):
        raise CaptureError(f"{len(chosen.means)} chosen sequences and {len(rejected.means)} rejected ones are no pairs")
    sides = [[part for part in vars(side.tokens).values() if part is not None] for side in (chosen, rejected)]
    width = max(parts[0].shape[1] for parts in sides)
    padded = [[pad(part, (0, width - part.shape[1])) for part in parts] for parts in sides]
    return CapturedBatch(
        Tokens(*(torch.cat(both) for both in zip(*padded, strict=True))),
        torch.cat([chosen.means, rejected.means]),
        torch.cat([chosen.contexts, rejected.contexts]),
    )


def _compute_dtype(m0: LoadedModel) -> str:
    """What M0's products are computed in: Accelerate's mixed precision decides over the weights' dtype."""
    from accelerate.state import AcceleratorState, is_initialized

    if not is_initialized():
        return m0.dtype
    return _AUTOCAST.get(str(AcceleratorState().mixed_precision), m0.dtype)
