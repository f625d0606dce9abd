"""What is its own about SFTTrainer: which of its datasets keep their texts, and which tokens it learns."""

from __future__ import annotations

from typing import Any


def refusal(trainer: Any) -> str | None:
    """Why what ``trainer`` learns cannot be audited."""
    if getattr(trainer, "_formatting_func", None) is None:
        return None
    return (
        "formatting_func makes plain text of each row, in which no response can be told from its prompt. Make prompt "
        "and completion, or messages, before training (dataset.map)."
    )


def texts_gone(trainer: Any) -> str | None:
    """Why its ``train_dataset`` no longer is the user's rows."""
    if trainer.args.packing:
        return "packing=True leaves token ids only"
    return "shuffle_dataset=True puts its rows in another order" if trainer.args.shuffle_dataset else None


def loss_note(trainer: Any) -> str | None:
    """What it learns beyond what is audited."""
    if trainer.completion_only_loss or trainer.args.assistant_only_loss:
        return None
    return (
        "the loss of this SFTTrainer is over prompts too (neither completion_only_loss nor assistant_only_loss): what "
        "they teach is not audited, only what the answers do"
    )
