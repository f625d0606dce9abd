"""M0 with a trained adapter on it: what a preference run begins with that goes on with one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from trl_attribution.errors import ModelError
from trl_attribution.utils.text import printable

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

REFERENCE = "ref"
"""TRL keeps such a run's reference, a copy of the adapter that it begins with, under this name."""
_SHOWN = 3
_PLAIN = frozenset(
    (
        *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
        *("inference_mode", "runtime_config", "megatron_core", "loftq_config", "r", "lora_alpha", "lora_dropout"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "rank_pattern"),
        *("alpha_pattern", "fan_in_fan_out", "use_rslora", "use_dora", "lora_bias"),
    )
)
"""Settings of a LoRA adapter that say nothing about the model's own weights."""
_PLAIN_VALUES = (("init_lora_weights", "gaussian"),)


def adapted(model: PreTrainedModel, adapter: str | Path) -> PeftModel:
    """``model`` with an active ``adapter``, a folder or a Hub id.

    Raises:
        ModelError: the adapter is of a kind that adds tokens, or it does not fit the model.
    """
    config = _config(adapter)
    from peft import PeftModel

    if config.is_prompt_learning:
        raise ModelError(f"adapter {printable(adapter)}: {config.peft_type} puts tokens of its own before the prompt")
    wrapped = PeftModel(model, config, adapter_name=REFERENCE)
    base = config.base_model_name_or_path
    result = wrapped.load_adapter(str(adapter), REFERENCE, is_trainable=False)
    # PEFT warns of the first and says nothing of the second.
    unlike = [*result.missing_keys, *result.unexpected_keys]
    if unlike:
        raise ModelError(
            f"adapter {printable(adapter)} does not fit this model: {len(unlike)} weights are missing or have no place "
            f"({', '.join(printable(name) for name in unlike[:_SHOWN])}). It was trained on {printable(base)}"
        )
    wrapped.eval()
    return wrapped


@contextmanager
def borrowed(model: PreTrainedModel, adapter: str | Path) -> Iterator[None]:
    """``model`` with an active ``adapter`` within the block; after it there is no trace of one, whatever ended it.

    Raises:
        ModelError: the model has an adapter already, or this one cannot be read, does not fit, or would change the
            model's own weights.
    """
    if getattr(model, "peft_config", None):
        raise ModelError(f"adapter {printable(adapter)}: the model has one already; merge that into it first")
    _refuse_lasting(adapter)
    with _given_back(model):
        adapted(model, adapter)
        yield


@contextmanager
def _given_back(model: PreTrainedModel) -> Iterator[None]:
    """After the block, which PEFT may have left half-way, the model has its own modules, as they were."""
    modules = list(model.modules())
    children = [(module, name, child) for module in modules for name, child in module.named_children()]
    # What an adapter changes of what it sits on: it freezes it, and is put into evaluation mode with it.
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    modes = [(module, module.training) for module in modules]
    # PEFT would put a hook on the embeddings of such a model, and leave it there.
    checkpointing: list[Any] = [module for module in modules if getattr(module, "gradient_checkpointing", False)]
    try:
        for module in checkpointing:
            module.gradient_checkpointing = False
        yield
    finally:
        for module, name, child in children:
            if getattr(module, name) is not child:
                setattr(module, name, child)
        for parameter in trained:
            parameter.requires_grad_(True)
        for module, mode in modes:
            module.training = mode
        for module in checkpointing:
            module.gradient_checkpointing = True
        vars(model).pop("peft_config", None)


def _config(adapter: str | Path) -> PeftConfig:
    try:
        from peft import PeftConfig
    except ImportError as error:
        raise ModelError("an adapter needs the peft package: pip install peft") from error
    found: PeftConfig = PeftConfig.from_pretrained(str(adapter))
    return found


def _refuse_lasting(adapter: str | Path) -> None:
    """Refuse what stays in the model's own weights when the adapter is off, or needs more than its own.

    Such are trained copies, biases, replicated layers and some starts. PEFT goes on inventing them, so only settings
    that are known to be harmless may differ from its defaults.
    """
    config = _config(adapter)
    if config.peft_type != "LORA":
        lasting = ["peft_type"]
    else:
        usual = vars(type(config)())
        lasting = [
            name
            for name, value in vars(config).items()
            if value and value != usual.get(name) and name not in _PLAIN and (name, value) not in _PLAIN_VALUES
        ]
    if lasting:
        raise ModelError(
            f"adapter {printable(adapter)}: its {' and '.join(lasting)} would change the model beyond the time that it "
            "is lent, or is not read here; give a plain LoRA adapter"
        )
