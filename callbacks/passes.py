"""Reads and scores the reference model's forward passes in a run, and keeps nothing that is not proved to be M0's."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from trl_attribution.callbacks.capture import CapturedBatch, CaptureError, Describe, ForwardCapture, labeled
from trl_attribution.callbacks.config import CallbackConfig
from trl_attribution.callbacks.online_scores import OnlineScores
from trl_attribution.callbacks.proof import Fault, Proof
from trl_attribution.callbacks.recorder import Recorder, Resolved
from trl_attribution.callbacks.reference_pass import ReferenceModel
from trl_attribution.utils.distributed import ALONE, Ranks


class ReferencePasses:
    """What one rank reads while it trains.

    Args:
        config: the settings.
        layers: the layers to read.
        recorder: where the vectors go.
        online: what scores them.
    """

    def __init__(
        self, config: CallbackConfig, layers: tuple[int, ...], recorder: Recorder, online: OnlineScores
    ) -> None:
        self._config, self._layers = config, layers
        self._recorder, self._online = recorder, online
        self._in_micro_batch = 0
        self._capture: ForwardCapture | None = None
        self._proof: Proof | None = None

    @property
    def is_reading(self) -> bool:
        """Whether forward passes are read."""
        return self._capture is not None

    def attach(self, reference: ReferenceModel, describe: Describe, take: Callable[[CapturedBatch], None]) -> None:
        """Read the passes of ``reference`` that ``describe`` wants, until :meth:`detach` or a fault."""
        capture = ForwardCapture(
            reference.model, self._layers, self._config.blocks_path, describe, take, reference.callers
        )
        self._proof = Proof(reference, capture)
        capture.attach()
        self._capture, self._in_micro_batch = capture, 0

    def attach_to_trainer(self, reference: ReferenceModel) -> None:
        """Read the passes that TRL makes."""
        describe = labeled(reference.is_training_pass, reference.response_mask, reference.pair_ids)
        self.attach(reference, describe, self._take)

    def detach(self) -> None:
        """Take the hooks off."""
        if self._capture is not None:
            self._capture.detach()
        self._capture = self._proof = None

    def micro_batch_done(self) -> None:
        """Called after each micro-batch: exactly one reference forward has to have been read.

        Raises:
            CaptureError: none was, or several were.
        """
        if self._capture is None:
            return
        passes, self._in_micro_batch = self._in_micro_batch, 0
        if passes != 1:
            raise CaptureError(
                f"{passes} reference forwards were read in one micro-batch, not 1: pairs would be lost or counted "
                "twice. Something else runs the reference model, or it is not run at all; audit offline instead: "
                "trl-attribution audit"
            )

    def resolve(self) -> Resolved:
        """Identify and score the pairs seen since the last call; returns them."""
        found = self._recorder.resolve()
        self._online.score(found.pair, found.context)
        return found

    def flagged_rows(self) -> Tensor:
        """Which pairs [B] of the batch that was read last any probe flags."""
        rows = self._recorder.waiting_rows
        found = self._recorder.resolve()
        flags = self._online.score(found.pair, found.context)
        flagged = torch.zeros(rows, dtype=torch.bool)
        flagged[torch.tensor(found.rows, dtype=torch.long)[flags]] = True
        return flagged

    def step_done(self) -> bool:
        """Count a step; whether :meth:`fault` should be asked for. The same on all ranks."""
        return self._proof is not None and self._proof.step_done()

    def fault(self, ranks: Ranks, *, at_end: bool = False) -> Fault | None:
        """Why what was read since the last call is not M0's: then it is dropped, and nothing more is read.

        A collective of ``ranks``.
        """
        self.resolve()
        found = None if self._proof is None else self._proof.fault(ranks, at_end=at_end)
        if found is not None:
            self.detach()
            self._recorder.forget()
            self._online.forget_window()
        return found

    def save_alone(self, *, is_shared: bool) -> None:
        """Write what was read on a rank that cannot wait for the others: the run is ending with an error.

        Raises:
            CaptureError: it is not proved to be M0's.
        """
        self.resolve()
        if self.is_reading and self._recorder.waits:
            if is_shared:
                raise CaptureError("it takes all ranks to prove that they are M0's")
            fault = self.fault(ALONE)
            if fault is not None:
                raise CaptureError(fault.reason)
        self._recorder.write()

    def _take(self, batch: CapturedBatch) -> None:
        self._in_micro_batch += 1
        self._recorder.add(batch)
        if self._recorder.is_full and self._config.on_flag != "skip":  # which looks at each batch by itself
            self.resolve()
