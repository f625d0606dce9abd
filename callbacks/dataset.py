"""The dataset that a trainer trains on, as the user's rows again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trl_attribution.errors import SettingsError
from trl_attribution.pairs import Encoding
from trl_attribution.pairs.rows import RowSource
from trl_attribution.pairs.rows.rows import DatasetRows, StreamRows
from trl_attribution.utils.kinds import Kind
from trl_attribution.utils.text import printable

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

_MADE_BY_TRAINER = frozenset(
    (
        *("prompt_ids", "chosen_ids", "rejected_ids", "ref_chosen_logps", "ref_rejected_logps"),
        *("completion_ids", "KL_completion_ids", "ref_logps", "ref_KL_logps"),
        *("input_ids", "labels", "completion_mask", "assistant_masks"),
    )
)
_TEXTS: dict[Kind, tuple[frozenset[str], ...]] = {
    "pair": (frozenset(("chosen", "rejected")),),
    "kto": (frozenset(("prompt", "completion", "label")),),
    "sft": (frozenset(("prompt", "completion")), frozenset(("messages",))),
}
"""Columns that hold the texts of a kind of example, one set or the other."""


def prepared_rows(dataset: Dataset | IterableDataset, kind: Kind, most: int | None = None) -> RowSource:
    """The rows of a trainer's ``train_dataset``, without what the trainer added.

    Plain responses keep the EOS token that TRL has put at their end; it does not count (:class:`Reading`).

    Args:
        dataset: the trainer's.
        kind: what it holds.
        most: rows of a stream that are trained on; None for all.

    Raises:
        SettingsError: its texts are gone, or are no prompts with responses, or it is a stream of another library.
    """
    from datasets import Dataset as MapDataset
    from datasets import IterableDataset

    if not isinstance(dataset, MapDataset | IterableDataset):
        raise SettingsError(
            f"dataset: the trainer's is a {type(dataset).__name__}, which is none of `datasets`: its rows cannot be "
            "read. Give them to the callback as a list or a datasets.Dataset: AttributionCallback(trainer, "
            "dataset=rows, ...)."
        )
    names = dataset.column_names or list(next(iter(dataset), {}))
    kept = [name for name in names if name not in _MADE_BY_TRAINER]
    if not any(texts <= set(kept) for texts in _TEXTS[kind]):
        if kind == "sft" and kept:
            shown = printable(", ".join(kept))
            raise SettingsError(
                f"dataset: the trainer's has neither prompt and completion nor messages, but {shown}: plain text has "
                "no responses that M0's could be compared with. Give the trainer one or the other."
            )
        raise SettingsError(
            "dataset: the trainer's holds token ids only, so no row can be matched with an example of yours. Give the "
            "callback the texts that they were made from: AttributionCallback(trainer, dataset=texts, ...)"
        )
    if isinstance(dataset, IterableDataset):
        return StreamRows("the trainer's stream", dataset, most, _MADE_BY_TRAINER)
    return DatasetRows("the trainer's dataset", "memory", dataset.select_columns(kept))


def rows_trained_on(dataset: Any, args: Any) -> int | None:
    """How many rows of a stream are trained on in ``max_steps``, if it has as many; None for all of a dataset."""
    from datasets import IterableDataset

    if not isinstance(dataset, IterableDataset) or args.max_steps <= 0:
        return None
    # Accelerate deals one batch out to all processes then, and a batch to each otherwise.
    batches = 1 if args.accelerator_config.split_batches else args.world_size
    return int(args.max_steps * args.train_batch_size * args.gradient_accumulation_steps * batches)


def encoding_of(args: Any) -> Encoding:
    """How a trainer with ``args`` cuts sequences."""
    limit = getattr(args, "max_length", None)
    if getattr(args, "packing", False) and args.packing_strategy != "bfd":
        limit = None  # what does not fit into one packed sequence goes on in another
    return Encoding(limit, str(getattr(args, "truncation_mode", None) or "keep_start"))
