"""The dataset that a trainer trains on, as the user's pairs again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trl_attribution.errors import SettingsError
from trl_attribution.pairs.rows import Row
from trl_attribution.pairs.rows.rows import DatasetRows

if TYPE_CHECKING:
    from datasets import Dataset

_MADE_BY_TRAINER = frozenset({"prompt_ids", "chosen_ids", "rejected_ids", "ref_chosen_logps", "ref_rejected_logps"})


@dataclass(frozen=True)
class PreparedRows(DatasetRows):
    """Rows of a dataset that ``DPOTrainer`` has prepared, without what it added.

    TRL appends the EOS token to responses that are plain text. A response that ended with EOS from the start cannot be
    told from one that TRL ended, so its pair gets the id of the shorter text: give the callback the original dataset
    where that matters.
    """

    eos_token: str | None = None

    def __iter__(self) -> Iterator[Row]:
        for row in super().__iter__():
            values = dict(row.values)
            for name in ("chosen", "rejected"):
                text = values.get(name)
                if self.eos_token and isinstance(text, str):
                    values[name] = text.removesuffix(self.eos_token)
            yield Row(row.index, row.location, values)


def prepared_rows(dataset: Dataset, eos_token: str | None) -> PreparedRows:
    """The rows of a trainer's ``train_dataset``.

    Raises:
        SettingsError: it is a stream, or its texts are gone.
    """
    from datasets import Dataset as MapDataset

    if not isinstance(dataset, MapDataset):
        raise SettingsError(
            f"dataset: the trainer's is a {type(dataset).__name__}, whose rows have no fixed order or end. Give the "
            "callback the same rows as a whole (AttributionCallback(trainer, dataset=...): a Dataset, a file or a Hub "
            "id), or load the trainer's without streaming=True."
        )
    if not {"chosen", "rejected"} <= set(dataset.column_names):
        raise SettingsError(
            "dataset: the trainer's holds token ids only, so no row can be matched with a pair of yours. Give the "
            "callback the dataset that the trainer was given: AttributionCallback(trainer, dataset=dataset, ...)"
        )
    kept = dataset.select_columns([name for name in dataset.column_names if name not in _MADE_BY_TRAINER])
    return PreparedRows("the trainer's dataset", "memory", kept, eos_token)
