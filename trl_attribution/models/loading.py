"""Load M0: a Hub id, a local folder or a GGUF file, with its tokenizer and fingerprint."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoProcessor,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from trl_attribution.errors import AttributionError, ModelError, SettingsError
from trl_attribution.models.adapter import adapted
from trl_attribution.models.checkpoint import model_class, whole_checkpoint
from trl_attribution.models.fingerprint import fingerprint, vision_digest, with_adapter
from trl_attribution.models.identity import ModelFingerprint
from trl_attribution.models.quantization import quantization_config
from trl_attribution.models.sharding import Sharding, load_sharded
from trl_attribution.models.source import adapter_advice, explain, first_line, resolve
from trl_attribution.models.text_part import refuse_encoder_decoder, text_part
from trl_attribution.utils.distributed import is_sharded, launch_flag, working_device
from trl_attribution.utils.dtypes import DTYPES, torch_dtype

logger = logging.getLogger(__name__)

_NO_LIMIT = 1_000_000_000
"""A tokenizer that knows no limit names an absurd one, above this."""


@dataclass(frozen=True)
class LoadedModel:
    """M0, ready to run."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    fingerprint: ModelFingerprint
    keeps: object = None
    """What has to live as long as the model does, where ranks share it."""
    processor: ProcessorMixin | None = None
    """The checkpoint's own, where it has one."""

    @property
    def encoder(self) -> PreTrainedTokenizerBase | ProcessorMixin:
        """What makes token ids of pairs as TRL does: the processor where there is one, else the tokenizer."""
        return self.processor or self.tokenizer

    @property
    def vision_digest(self) -> str:
        """What vectors of images are bound to besides the fingerprint: :func:`fingerprint.vision_digest`."""
        return vision_digest(self.model, self.processor)

    @property
    def dtype(self) -> str:
        """The dtype it computes in: ``bfloat16``."""
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def device(self) -> str:
        """The device it runs on: ``cuda:0``."""
        return str(working_device() if is_sharded(self.model) else self.model.device)


def load_model(
    name: str | Path,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    sharding: Sharding | None = None,
    with_head: bool = False,
    adapter: str | Path | None = None,
    quantization: str | None = None,
) -> LoadedModel:
    """Load a model as TRL's trainers load it, with its tokenizer, in evaluation mode.

    Args:
        name: a local folder, a GGUF file (dequantized once, kept in the cache folder), or a Hub id.
        dtype: ``float32``, ``bfloat16``, ``float16``, or ``auto``: bfloat16 where the hardware multiplies it.
        device: a torch device, or ``auto``: CUDA, then MPS, then CPU.
        trust_remote_code: run Python code that comes with the model. Off unless you trust its author.
        sharding: every rank keeps a piece of the model only; all of them have to load and to run it together.
        with_head: make the LM head of a model in pieces ready to run too, so that it can write responses.
        adapter: a PEFT adapter, a folder or a Hub id, that is part of M0: as in a run that goes on training one.
        quantization: how to quantize the weights, as QLoRA does; see :func:`quantization_config`.

    Raises:
        ModelError: there is no such model, it cannot be loaded, it lacks weights, or it has no tokenizer.
        SettingsError: an unknown dtype, device or quantization, or a model in pieces that is to be changed.
    """
    chosen_device = _device(device)
    chosen_dtype = _dtype(dtype, chosen_device)
    if sharding is not None:
        _refuse_changes(sharding, adapter=adapter, quantization=quantization)
    options: dict[str, Any] = {"dtype": chosen_dtype, "trust_remote_code": trust_remote_code, "use_safetensors": True}
    if quantization is not None:
        options["quantization_config"] = quantization_config(quantization, chosen_dtype)
        options["device_map"] = {"": chosen_device}
    source = resolve(name)
    tokenizer = _tokenizer(source, name, trust_remote_code)
    keeps: object = None
    try:
        if sharding is not None:
            sharded = load_sharded(
                lambda: _whole_model(source, options), sharding, chosen_dtype, chosen_device, with_head
            )
            model, keeps = sharded.model, sharded.engine
        else:
            model = _whole_model(source, options)
            if quantization is None:
                model.to(chosen_device)  # type: ignore[arg-type]  # a decorator hides the method's signature
        identity = fingerprint(model, tokenizer)
        if adapter is not None:
            keeps = adapted(model, adapter)
            identity = with_adapter(identity, model)
    except ModelError as error:
        raise ModelError(explain(name, error)) from error
    except AttributionError:  # a setting, or another rank
        raise
    except Exception as error:  # whatever a loader makes of broken files
        raise ModelError(explain(name, error)) from error
    processor = _processor(source, name, trust_remote_code) if text_part(model).path else None
    return LoadedModel(model, tokenizer, str(name), identity, keeps, processor)


def _refuse_changes(sharding: Sharding, **changes: object) -> None:
    named = " and ".join(setting for setting, value in changes.items() if value is not None)
    if named:
        raise SettingsError(f"{named}: not for a model in pieces ({sharding}); run on whole copies of it (DDP)")


def _whole_model(source: str, options: dict[str, Any]) -> PreTrainedModel:
    config = AutoConfig.from_pretrained(source, trust_remote_code=options["trust_remote_code"])
    refuse_encoder_decoder(config)
    model = whole_checkpoint(model_class(config), source, **options)
    if getattr(model, "peft_config", None):  # transformers puts the adapter of an adapter's repository on its base
        raise ModelError(adapter_advice(source, str(model.config.name_or_path)))
    model.eval()
    return model


def load_tokenizer(name: str | Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model alone; ``name`` as for :func:`load_model`.

    Raises:
        ModelError: there is no such model, or it has no tokenizer.
    """
    return _tokenizer(resolve(name), name, trust_remote_code)


def load_processor(name: str | Path, trust_remote_code: bool = False) -> ProcessorMixin | None:
    """Load the processor of a model alone; None where it has none."""
    return _processor(resolve(name), name, trust_remote_code)


def longest_input(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """How many tokens a model and its tokenizer take at most; None where neither names a limit."""
    limits = (getattr(config, "max_position_embeddings", None), tokenizer.model_max_length)
    return min((int(limit) for limit in limits if limit is not None and 0 < limit < _NO_LIMIT), default=None)


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode for the time of the block; the modules' own modes come back whatever happens.

    It also brings back the key-value cache, which gradient checkpointing takes from a model in training.
    """
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode


def _tokenizer(source: str, name: str | Path, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    try:
        loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise ModelError(explain(name, error)) from error
    return loaded


def _processor(source: str, name: str | Path, trust_remote_code: bool) -> ProcessorMixin | None:
    """What TRL encodes text with where a model takes more than text; None where the checkpoint has none."""
    try:
        found = AutoProcessor.from_pretrained(source, trust_remote_code=trust_remote_code)
    except Exception as error:  # noqa: BLE001  # whatever a processor lacks here, such as torchvision
        logger.warning("%s: text is encoded by its tokenizer alone (no processor: %s)", name, first_line(error))
        return None
    return found if isinstance(found, ProcessorMixin) else None


def _device(device: str) -> torch.device:
    if device == "auto":
        if launch_flag("ACCELERATE_USE_CPU"):
            return torch.device("cpu")  # accelerate launch --cpu
        if torch.cuda.is_available():
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise SettingsError(
            f"device: {device!r} is not usable here ({first_line(error)}); choose auto or cpu"
        ) from error


def _dtype(dtype: str, device: torch.device) -> torch.dtype:
    if dtype != "auto":
        if dtype not in DTYPES:
            raise SettingsError(f"dtype: {dtype!r} is unknown; choose auto, {', '.join(DTYPES)}")
        return torch_dtype(dtype)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    # The public get_capabilities() also counts AVX-512 machines whose bfloat16 is only emulated.
    if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported():  # noqa: SLF001
        return torch.bfloat16
    return torch.float32
