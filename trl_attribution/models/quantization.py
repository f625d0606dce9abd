"""M0 in 4 or 8 bits, as QLoRA trains on it."""

from __future__ import annotations

import json
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.quantizers import AutoQuantizationConfig

from trl_attribution.errors import SettingsError
from trl_attribution.utils.text import json_fault, printable

_CHOICES = "choose 4bit or 8bit (bitsandbytes), or give the quantization_config of transformers as a JSON object"


def quantization_config(asked: str, dtype: torch.dtype) -> Any:
    """The config that ``asked`` stands for: ``4bit`` and ``8bit`` are those of TRL's ``--load_in_4bit`` and ``_8bit``.

    Raises:
        SettingsError: it is neither of them, nor a JSON object that transformers takes.
    """
    if asked == "4bit":
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    if asked == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    if not asked.lstrip().startswith("{"):
        raise SettingsError(f"quantization: {printable(asked)!r} is unknown; {_CHOICES}")
    try:
        return AutoQuantizationConfig.from_dict(json.loads(asked))
    except json.JSONDecodeError as error:
        raise SettingsError(f"quantization: no JSON ({json_fault(error)}); {_CHOICES}") from error
    except (ValueError, TypeError, AttributeError, ImportError, RecursionError) as error:
        raise SettingsError(f"quantization: {printable(error, 300)}; {_CHOICES}") from error


def quantization_again(model: PreTrainedModel) -> str | None:
    """What :func:`quantization_config` takes to quantize as ``model`` was, None where its weights are as they are."""
    config = getattr(model.config, "quantization_config", None)
    if not getattr(model, "is_quantized", False) or config is None:
        return None
    return json.dumps(config if isinstance(config, dict) else config.to_dict(), default=str)


def quantization_of(model: PreTrainedModel) -> str:
    """How the weights of ``model`` are quantized, in words for a message; empty where they are not."""
    config = getattr(model.config, "quantization_config", None)
    if not getattr(model, "is_quantized", False) or config is None:
        return ""
    values: dict[str, Any] = config if isinstance(config, dict) else config.to_diff_dict()
    told = {name.lstrip("_"): value for name, value in values.items() if value and "dtype" not in name}
    return printable(json.dumps(told, sort_keys=True, default=str))
