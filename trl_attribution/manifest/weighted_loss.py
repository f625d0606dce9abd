"""Weights replayed while training: each pair's loss counts as much as its weight says.

TRL's ``DPOTrainer`` has no weight for a pair, and takes the mean over the batch inside its loss. What reaches the model
from a pair's loss goes through that pair's rows of the policy's outputs, so there the gradient is multiplied by the
weight. That is the gradient of ``sum(w * loss) / B`` over the B pairs of a batch, for every loss in which pairs do not
mix: a weight of 0 leaves nothing of a pair, 1 changes no bit, and as B does not depend on the weights, the mean over
accumulated batches and processes is that of one large batch. The loss that a trainer logs stays the unweighted one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from trl_attribution.errors import SettingsError
from trl_attribution.manifest.config import WEIGHT_COLUMN
from trl_attribution.utils.text import printable

WeightsOf = Callable[[Mapping[str, Any]], Tensor | None]
"""The weights [B] of a batch's pairs, asked once its loss is known; None where all count alike."""
_KEY = "pair_weights"
_MIXING = ("aot", "aot_unpaired")


class WeightedLossMixin:
    """Put before ``DPOTrainer``, so that pairs count in its loss by the weights in a column of ``train_dataset``.

    Example:
        >>> class WeightedDPOTrainer(WeightedLossMixin, DPOTrainer): ...  # doctest: +SKIP
        >>> weighted = Manifest.load("manifest.filter.jsonl").apply(dataset, action="weight")  # doctest: +SKIP
        >>> WeightedDPOTrainer(model, args=args, train_dataset=weighted).train()  # doctest: +SKIP

    Raises:
        SettingsError: the column is missing or holds something else than numbers from 0 on, or the trainer's loss
            cannot be weighed pair by pair.
    """

    weight_column: str = WEIGHT_COLUMN
    """Set in a subclass where the column has another name."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        weigh_by_column(self, self.weight_column)


def weigh_by_column(trainer: Any, column: str = WEIGHT_COLUMN) -> None:
    """Let pairs count in the loss of ``trainer``, a ``DPOTrainer``, by a column of its ``train_dataset``.

    Evaluation is left as it is.

    Raises:
        SettingsError: as for :class:`WeightedLossMixin`; also where it does so already.
    """
    if isinstance(trainer.data_collator, _Collator):
        raise SettingsError("weights: the trainer weighs its pairs already (WeightedLossMixin); ask for it once")
    _check_loss(trainer)
    _check_column(trainer.train_dataset, column)
    trainer._set_signature_columns_if_needed()  # noqa: SLF001  # what it lists survives remove_unused_columns
    trainer._signature_columns = [*trainer._signature_columns, column]  # noqa: SLF001
    trainer.data_collator = _Collator(trainer.data_collator, column)
    # The models take whatever a batch holds besides what TRL knows.
    trainer._compute_loss = _without_weights(trainer._compute_loss)  # noqa: SLF001
    trainer.compute_ref_log_probs = _without_weights(trainer.compute_ref_log_probs)
    weigh_pairs(trainer, _of_batch)


def weigh_pairs(trainer: Any, weights_of: WeightsOf) -> None:
    """Let each pair of a training batch count in the loss of ``trainer`` by what ``weights_of`` says.

    Several such calls multiply.

    Raises:
        SettingsError: the trainer's loss cannot be weighed pair by pair.
    """
    _check_loss(trainer)
    compute_loss = trainer._compute_loss  # noqa: SLF001  # what compute_loss of every supported TRL calls

    def compute_weighed_loss(model: Any, inputs: Mapping[str, Any], return_outputs: bool) -> Any:
        if not (trainer.model.training and torch.is_grad_enabled()):
            return compute_loss(model, inputs, return_outputs)
        rows = _Rows()
        hook = model.register_forward_hook(rows.watch)
        try:
            loss = compute_loss(model, inputs, return_outputs)
        finally:
            hook.remove()
        rows.weigh(weights_of(inputs))
        return loss

    trainer._compute_loss = compute_weighed_loss  # noqa: SLF001


class _Rows:
    """What the policy gives for each sequence of a batch, chosen ones first, then rejected ones."""

    def __init__(self) -> None:
        self._weights: Tensor | None = None
        self._watched = False

    def watch(self, _module: Any, _args: Any, outputs: Mapping[str, Any]) -> None:
        """A forward hook: the gradient of every output that has one goes through :meth:`_weighed`."""
        for value in outputs.values():
            if isinstance(value, Tensor) and value.requires_grad and value.ndim:
                value.register_hook(self._weighed)
                self._watched = True

    def weigh(self, weights: Tensor | None) -> None:
        """Set the weights [B], before the gradient comes."""
        if not self._watched:
            raise SettingsError(
                "weights: the model's outputs hold nothing by sequence that a gradient goes through, as with kernels "
                "that fuse the whole loss (use_liger_kernel). Switch them off."
            )
        self._weights = None if weights is None else torch.cat([weights, weights])

    def _weighed(self, gradient: Tensor | None) -> Tensor | None:
        # None of outputs that the loss does not use, which DDP passes on with the others.
        if self._weights is None or gradient is None:
            return gradient
        weights = self._weights.to(gradient.device, gradient.dtype)
        return gradient * weights.view(-1, *[1] * (gradient.ndim - 1))


class _Collator:
    """A trainer's collator that passes on each pair's weight."""

    def __init__(self, collate: Callable[..., Any], column: str) -> None:
        self._collate, self._column = collate, column

    def __call__(self, examples: Sequence[Mapping[str, Any]], *args: Any, **kwargs: Any) -> Any:
        batch = self._collate(examples, *args, **kwargs)
        if self._column in examples[0]:  # not of rows to evaluate
            weights = _checked([example[self._column] for example in examples], self._column)
            # Twice, as all of TRL's columns, so that what cuts a batch into those of ranks cuts all alike.
            batch[_KEY] = torch.tensor([*weights, *weights])
        return batch


def _of_batch(inputs: Mapping[str, Any]) -> Tensor | None:
    weights: Tensor | None = inputs.get(_KEY)
    return None if weights is None else weights.chunk(2)[0]


def _without_weights(method: Callable[..., Any]) -> Callable[..., Any]:
    def called(*args: Any, **kwargs: Any) -> Any:
        return method(*map(_stripped, args), **{name: _stripped(value) for name, value in kwargs.items()})

    return called


def _stripped(value: Any) -> Any:
    return {name: one for name, one in value.items() if name != _KEY} if isinstance(value, Mapping) else value


def check_loss_types(names: Sequence[str]) -> None:
    """Make sure that each pair has a loss of its own.

    Raises:
        SettingsError: it has not.
    """
    mixing = [name for name in names if name in _MIXING]
    if mixing:
        raise SettingsError(
            f"weights: loss_type '{mixing[0]}' sorts the pairs of a batch against one another, so none has a loss of "
            "its own to weigh. Choose another, such as sigmoid."
        )


def _check_loss(trainer: Any) -> None:
    if not hasattr(trainer, "loss_types"):
        raise SettingsError(f"weights: only a DPOTrainer's pairs can be weighed, not {type(trainer).__name__}'s")
    check_loss_types(trainer.loss_types)
    # Older TRL has a loss of its own for it, past the model's outputs.
    if trainer.args.use_liger_kernel and hasattr(trainer, "_compute_loss_liger"):
        raise SettingsError(
            "weights: with use_liger_kernel this version of TRL computes the loss inside a kernel, where no pair can "
            "be weighed. Set use_liger_kernel=False."
        )


def _check_column(dataset: Any, column: str) -> None:
    names = dataset.column_names or list(next(iter(dataset), {}))  # a stream need not know them
    if column not in names:
        raise SettingsError(
            f"weights: the trainer's dataset has no column '{printable(column)}'; it has "
            f"{printable(', '.join(names), 400)}. Make it with trl-attribution apply --action weight."
        )
    if hasattr(dataset, "__len__"):  # of a stream, each batch is checked
        _checked(dataset.with_format(None)[column][:], column)


def _checked(weights: Sequence[Any], column: str) -> list[float]:
    for place, weight in enumerate(weights):
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
            raise SettingsError(
                f"weights: column '{printable(column)}' holds {printable(repr(weight), 40)} (row {place}); a weight is "
                "a number from 0 on, and 1 where nothing is to change."
            )
    return [float(weight) for weight in weights]
