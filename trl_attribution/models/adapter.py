"""M0 with a trained adapter on it: what a preference run begins with that goes on with one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from transformers import PreTrainedModel

from trl_attribution.errors import ModelError
from trl_attribution.utils.text import printable

if TYPE_CHECKING:
    from peft import PeftModel

REFERENCE = "ref"
"""TRL keeps such a run's reference, a copy of the adapter that it begins with, under this name."""
_SHOWN = 3


def adapted(model: PreTrainedModel, adapter: str | Path) -> PeftModel:
    """``model`` with an active ``adapter``, a folder or a Hub id.

    Raises:
        ModelError: the adapter is of a kind that adds tokens, or it does not fit the model.
    """
    try:
        from peft import PeftConfig, PeftModel
    except ImportError as error:
        raise ModelError("an adapter needs the peft package: pip install peft") from error

    config = PeftConfig.from_pretrained(str(adapter))
    if config.is_prompt_learning:
        raise ModelError(f"adapter {printable(adapter)}: {config.peft_type} puts tokens of its own before the prompt")
    wrapped = PeftModel(model, config, adapter_name=REFERENCE)
    result = wrapped.load_adapter(str(adapter), REFERENCE, is_trainable=False)
    # PEFT warns of the first and says nothing of the second.
    unlike = [*result.missing_keys, *result.unexpected_keys]
    if unlike:
        base = config.base_model_name_or_path
        raise ModelError(
            f"adapter {printable(adapter)} does not fit this model: {len(unlike)} weights are missing or have no place "
            f"({', '.join(printable(name) for name in unlike[:_SHOWN])}). It was trained on {printable(base)}"
        )
    wrapped.eval()
    return wrapped
