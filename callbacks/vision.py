"""Which pairs a training batch of images holds: their tokens do not tell, so the collator is asked.

TRL's own collator gets the rows as they are; their ids, of text and pixels, go along with the batch up to the step,
which is given what it would be given anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from trl_attribution.errors import DataError, SettingsError
from trl_attribution.pairs import PairReader, Reading, pair_id
from trl_attribution.pairs.rows.media import is_transformed
from trl_attribution.pairs.vision import SINCE
from trl_attribution.utils.compat import is_before, version_of

_KEY = "attribution_pair_ids"
_UNKNOWN = bytes(16)
_READING = Reading(format="trl")


def trains_on_images(trainer: Any) -> bool:
    """Whether TRL takes its dataset for one of images."""
    return bool(getattr(trainer, "_is_vision_dataset", False))


def check_alike(reader: PairReader, trainer: Any) -> None:
    """Refuse a dataset of the callback's that is not the trainer's.

    Raises:
        SettingsError: one holds images, and the other does not.
    """
    if reader.has_images != trains_on_images(trainer):
        one, other = ("callback", "trainer") if reader.has_images else ("trainer", "callback")
        raise SettingsError(f"dataset: the {one}'s holds images, and the {other}'s does not. Give both the same.")


def watch_images(trainer: Any) -> Callable[[], Tensor | None]:
    """Have the collator of ``trainer``, a ``DPOTrainer``, name the pairs of each batch.

    Returns:
        To be asked within a step: the ids of its batch, [2B, 16] bytes; None where the dataset has no images.

    Raises:
        SettingsError: TRL is too old, or the dataset is a stream or has a transform.
    """
    from datasets import IterableDataset

    if not trains_on_images(trainer):
        return lambda: None
    if is_before("trl", SINCE):
        raise SettingsError(f"images are audited from TRL {SINCE} on; {version_of('trl')} is installed. Upgrade it.")
    if isinstance(trainer.train_dataset, IterableDataset):
        raise SettingsError(
            "dataset: images cannot be read of a stream. Give the trainer a map-style dataset: "
            "Dataset.from_list(list(stream))"
        )
    if is_transformed(trainer.train_dataset):
        raise SettingsError(
            "dataset: it has a transform (set_transform), so that what is stored is not what is trained on. Give the "
            "trainer one without: Dataset.map does the same once"
        )
    step = trainer._compute_loss  # noqa: SLF001  # what compute_loss of every supported TRL calls
    if not isinstance(step, _Step):
        step = _Step(step)
        trainer._compute_loss = step  # noqa: SLF001
        trainer.data_collator = _Collator(trainer.data_collator)
    return lambda: step.pair_ids


class _Collator:
    """A trainer's collator that also says which pairs a batch holds."""

    def __init__(self, collate: Callable[..., Any]) -> None:
        self._collate = collate

    def __call__(self, examples: Sequence[Mapping[str, Any]], *args: Any, **kwargs: Any) -> Any:
        ids = [list(_id_of(example)) for example in examples]  # before TRL's changes them
        batch = self._collate(examples, *args, **kwargs)
        # Twice, as all of TRL's columns, so that what cuts a batch into those of ranks cuts all alike.
        batch[_KEY] = torch.tensor([*ids, *ids], dtype=torch.uint8)
        return batch


class _Step:
    """The loss of a batch, told nothing of the ids that came with it."""

    def __init__(self, compute_loss: Callable[..., Any]) -> None:
        self._compute_loss = compute_loss
        self.pair_ids: Tensor | None = None

    def __call__(self, model: Any, inputs: Mapping[str, Any], return_outputs: bool) -> Any:
        self.pair_ids = inputs.get(_KEY)
        try:
            kept = {name: value for name, value in inputs.items() if name != _KEY}
            return self._compute_loss(model, kept, return_outputs)
        finally:
            self.pair_ids = None


def _id_of(example: Mapping[str, Any]) -> bytes:
    try:
        return bytes.fromhex(pair_id(example, _READING))
    except DataError:  # no pair: known when the dataset was read
        return _UNKNOWN
