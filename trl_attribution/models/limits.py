"""Which tokens a model has a place for: those with an embedding, and as many as it has learned positions."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from trl_attribution.errors import ModelError
from trl_attribution.models.text_part import text_part

# OPT and its kin keep two places before the first position.
_MOST_OFFSET = 8


@dataclass(frozen=True)
class InputLimits:
    """What goes into a model."""

    tokens: int | None
    """Rows of the embedding; None where it is no table."""
    positions: int | None
    """Tokens of the longest sequence; None where positions are not learned one by one."""

    def check(self, highest_token: int, longest: int) -> None:
        """Refuse what the model has no place for, before it meets it amid a pass.

        Args:
            highest_token: the highest token id.
            longest: tokens of the longest sequence.

        Raises:
            ModelError: the model has no such token or position.
        """
        if self.tokens is not None and highest_token >= self.tokens:
            raise ModelError(
                f"the tokenizer gives token {highest_token}, but the model has embeddings for {self.tokens} tokens "
                f"(0 to {self.tokens - 1}): the tokenizer is of another model, or the embeddings were not resized for "
                "the tokens added to it. Use the tokenizer that the model was trained with"
            )
        if self.positions is not None and longest > self.positions:
            raise ModelError(
                f"a sequence has {longest} tokens, but the model has learned {self.positions} positions: give "
                f"--max-length {self.positions} (Encoding(max_length={self.positions})), as training has to"
            )


def input_limits(model: PreTrainedModel) -> InputLimits:
    """The limits of ``model``, by its modules: a table as long as the config says positions are is one of positions."""
    part, embeddings = text_part(model), model.get_input_embeddings()
    longest = getattr(part.config, "max_position_embeddings", None)
    tables = [
        module for module in part.module.modules() if isinstance(module, nn.Embedding) and module is not embeddings
    ]
    learned = any(longest and longest <= table.num_embeddings <= longest + _MOST_OFFSET for table in tables)
    return InputLimits(getattr(embeddings, "num_embeddings", None), longest if learned else None)
