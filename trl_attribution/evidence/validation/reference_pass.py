"""M0's log-probabilities of the responses, computed once for all cells: they differ in the pairs, never in M0."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from trl_attribution.utils.atomic import atomic_path

_FILE = "reference.parquet"
Ids = Sequence[int]


@dataclass(frozen=True)
class ReferencePass:
    """Log-probabilities under the reference model, kept in a validation's folder.

    ``precompute_ref_log_probs`` alone would have every cell make the pass again, which takes as long as the reference's
    forward in the steps does. What is kept is by token ids, so that a pair's two responses are found whichever is the
    chosen one.
    """

    folder: Path

    def attach(self, trainer: Any) -> None:
        """Give the rows of a ``DPOTrainer`` their reference log-probabilities, and drop its reference model.

        The trainer must have been made with ``precompute_ref_log_probs=False``.
        """
        rows = trainer.train_dataset
        with filelock.FileLock(self.folder / f"{_FILE}.lock"):
            known = self._load()
            new = _unknown(rows, known)
            if new:
                known |= _computed(trainer, new)
                self._save(known)
        chosen, rejected = zip(*(_both(row, known) for row in rows), strict=True)
        trainer.train_dataset = rows.add_column("ref_chosen_logps", list(chosen)).add_column(
            "ref_rejected_logps", list(rejected)
        )
        trainer.precompute_ref_logps = True
        trainer.ref_model = None

    def _load(self) -> dict[str, float]:
        path = self.folder / _FILE
        if not path.exists():
            return {}
        table = pq.read_table(path)
        return dict(zip(table["digest"].to_pylist(), table["log_probability"].to_pylist(), strict=True))

    def _save(self, known: Mapping[str, float]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        table = pa.table({"digest": list(known), "log_probability": pa.array(known.values(), pa.float32())})
        with atomic_path(self.folder / _FILE) as part:
            pq.write_table(table, part)


def _both(row: Mapping[str, Any], known: Mapping[str, float]) -> tuple[float, float]:
    chosen, rejected = _digests(row)
    return known[chosen], known[rejected]


def _digests(row: Mapping[str, Any]) -> tuple[str, str]:
    """Of the chosen and of the rejected response; each names the other too, by whose length ``ld_alpha`` goes."""
    prompt, chosen, rejected = row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]
    return _digest(prompt, chosen, rejected), _digest(prompt, rejected, chosen)


def _digest(*parts: Ids) -> str:
    return hashlib.sha256(repr([list(part) for part in parts]).encode()).hexdigest()


def _unknown(rows: Iterable[Mapping[str, Any]], known: Mapping[str, float]) -> list[Mapping[str, Any]]:
    """Different rows that nothing is known of, the longest first: batches of one length have little padding."""
    new = {digests[0]: row for row in rows if not set(digests := _digests(row)) <= known.keys()}
    return sorted(new.values(), key=_length, reverse=True)


def _length(row: Mapping[str, Any]) -> int:
    return len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))


def _computed(trainer: Any, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Digest -> log-probability of both responses of ``rows``, by the trainer's own computation."""
    size = trainer.args.precompute_ref_batch_size or trainer.args.per_device_train_batch_size
    device = trainer.accelerator.device
    # An adapter that is trained has no reference model beside it: the trainer turns the adapter off.
    reference = trainer.ref_model if trainer.ref_model is not None else trainer.model
    found: dict[str, float] = {}
    for start in range(0, len(rows), size):
        batch = rows[start : start + size]
        inputs = {name: value.to(device) for name, value in trainer.data_collator(list(batch)).items()}
        sides = torch.stack(trainer.compute_ref_log_probs(reference, inputs)).float().cpu()
        for place, row in enumerate(batch):
            found |= zip(_digests(row), sides[:, place].tolist(), strict=True)
    return found
