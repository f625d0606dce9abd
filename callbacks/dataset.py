"""The dataset that a trainer trains on, as the user's rows again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trl_attribution.errors import SettingsError
from trl_attribution.pairs.rows.rows import DatasetRows

if TYPE_CHECKING:
    from datasets import Dataset

_MADE_BY_TRAINER = frozenset({"prompt_ids", "chosen_ids", "rejected_ids", "ref_chosen_logps", "ref_rejected_logps"})


def prepared_rows(dataset: Dataset) -> DatasetRows:
    """The rows of a trainer's ``train_dataset``, without what the trainer added.

    Plain responses keep the EOS token that TRL has put at their end; it does not count (:class:`Reading`).

    Raises:
        SettingsError: it is a stream, or its texts are gone.
    """
    from datasets import Dataset as MapDataset

    if not isinstance(dataset, MapDataset):
        raise SettingsError(
            f"dataset: the trainer's is a {type(dataset).__name__}, whose rows have no fixed order or end: they cannot "
            "be read again. Train on it all the same, and give the callback its rows as a list or a datasets.Dataset, "
            "AttributionCallback(trainer, dataset=rows, ...), or load it without streaming=True."
        )
    if not {"chosen", "rejected"} <= set(dataset.column_names):
        raise SettingsError(
            "dataset: the trainer's holds token ids only, so no row can be matched with a pair of yours. Give the "
            "callback the texts that they were made from: AttributionCallback(trainer, dataset=texts, ...)"
        )
    kept = dataset.select_columns([name for name in dataset.column_names if name not in _MADE_BY_TRAINER])
    return DatasetRows("the trainer's dataset", "memory", kept)
