"""DPO runs drawn at random, each checked against M0 computed naively: the same vectors, or a refusal with a reason."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from datasets import Dataset
from peft import (
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from torch.nn.functional import cosine_similarity
from transformers import AutoModelForCausalLM, AutoTokenizer, MixtralConfig, PreTrainedModel, TrainerCallback
from trl import DPOTrainer
from trl.experimental.bema_for_ref_model import BEMACallback
from trl.experimental.bema_for_ref_model import DPOTrainer as BEMATrainer
from trl.trainer.callbacks import SyncRefModelCallback

from tests import naive
from tests.tiny import ARCHITECTURES, build_tiny_model, build_tiny_tokenizer
from tests.training import LAYERS, config, text_rows
from trl_attribution.callbacks import AttributionCallback
from trl_attribution.errors import AttributionError
from trl_attribution.models import load_model
from trl_attribution.pairs import EncodedPair, Encoding, PairReader, Reading, encode_pairs

ROWS = text_rows(10)
# Without noise a run's vectors are M0's to 1e-6; with autocast they carry rounding, and noise leaves 0.1 to 0.9.
EQUAL, EQUAL_ROUNDED = 0.9999, 0.97

_DROPOUT: dict[str, dict[str, float]] = {
    "gpt2": {"attn_pdrop": 0.2, "resid_pdrop": 0.2},
    "gpt_neox": {"attention_dropout": 0.2, "hidden_dropout": 0.2},
    "phi3": {"attention_dropout": 0.2, "resid_pdrop": 0.2},
    "mixtral": {"router_jitter_noise": 0.3},
}
_KINDS = (*(name for name in ARCHITECTURES if name != "mamba"), "mixtral")


def _lora(**options: Any) -> LoraConfig:
    return LoraConfig(**{"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **options})


ADAPTERS: dict[str, Callable[[], Any] | None] = {
    "none": None,
    "lora": _lora,
    "lora, random": lambda: _lora(init_lora_weights=False),
    "lora, gaussian": lambda: _lora(init_lora_weights="gaussian", lora_dropout=0.1),
    "lora, orthogonal": lambda: _lora(init_lora_weights="orthogonal"),
    "pissa": lambda: _lora(init_lora_weights="pissa"),
    "olora": lambda: _lora(init_lora_weights="olora"),
    "bias all": lambda: _lora(bias="all"),
    "bias lora_only": lambda: _lora(bias="lora_only"),
    "dora": lambda: _lora(use_dora=True),
    "rslora": lambda: _lora(use_rslora=True),
    "ia3": lambda: IA3Config(target_modules="all-linear", feedforward_modules=[], task_type="CAUSAL_LM"),
    "loha": lambda: LoHaConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
    "lokr": lambda: LoKrConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
    "vera": lambda: VeraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
    "prefix tuning": lambda: PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    "prompt tuning": lambda: PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    "trained lora": lambda: _lora(init_lora_weights=False),
}


@dataclass(frozen=True)
class Draw:
    """One run."""

    seed: int
    architecture: str
    adapter: str = "none"
    noisy: bool = False
    """The checkpoint has dropout (or jitter), and ``disable_dropout`` is off for half of these."""
    reference: str = "none"
    """none, same, other, training: the model given for a reference."""
    mover: str = "none"
    """none, sync, sync by hand, bema, hidden, merge: what changes the reference while training."""
    at_construction: bool = False
    nameless: bool = False
    """The policy comes from memory, and no checkpoint can be found again."""
    dtype: str = "float32"
    """Of the weights."""
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What a drawn run came to."""

    verdict: str
    """equal, refused, different, disturbed, or not runnable (TRL fails on it without the callback)."""
    detail: str
    """Where M0 was read, or why not."""


def drawn(seed: int) -> Draw:
    """The run of ``seed``: the same each time."""
    draw = random.Random(seed)
    adapter = draw.choice(["none"] * 6 + [name for name in ADAPTERS if name != "none"])
    precompute = draw.random() < 0.15
    references = ["none"] * 5 + ["same", "other", "training"]
    reference = "none" if adapter == "trained lora" else draw.choice(references)
    movers = ["none"] * 2
    if adapter == "none" and not precompute:
        movers = ["none"] * 4 + ["sync", "sync by hand", "bema", "hidden"]
    elif adapter not in ("prefix tuning", "prompt tuning", "none"):
        movers = ["none"] * 5 + ["merge"]
    nameless = adapter != "none" and reference == "none" and draw.random() < 0.2
    return Draw(
        seed,
        draw.choice(_KINDS),
        adapter,
        draw.random() < 0.25,
        reference,
        draw.choice(movers),
        draw.random() < 0.15,
        nameless,
        "bfloat16" if draw.random() < 0.1 else "float32",
        {
            "learning_rate": draw.choice([1e-5, 1e-2]),
            "per_device_train_batch_size": draw.choice([2, 3, 4]),
            "gradient_accumulation_steps": draw.choice([1, 1, 2, 3]),
            "num_train_epochs": draw.choice([1, 1, 2]),
            "max_length": draw.choice([None, 64]),
            "neftune_noise_alpha": draw.choice([None] * 7 + [5.0]),
            "disable_dropout": draw.random() < 0.5,
            "precompute_ref_log_probs": precompute,
            "bf16": draw.random() < 0.1,
            "gradient_checkpointing": draw.random() < 0.5 and adapter not in ("prefix tuning", "prompt tuning"),
        },
    )


def checked(draw: Draw) -> Outcome:
    """Run ``draw`` without the callback and with it, and compare what it read with M0."""
    with TemporaryDirectory() as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(temporary)
        try:
            alone = _Run(draw, folder, is_audited=False)
        except Exception as error:  # whatever TRL, PEFT or the model think of it
            return Outcome("not runnable", f"{type(error).__name__}: {str(error)[:160]}")
        try:
            audited = _Run(draw, folder, is_audited=True)
        except AttributionError as error:
            return Outcome("refused", " ".join(str(error).split()))
        return audited.compared(alone)


class _Run:
    """A run of ``draw``, to its end."""

    def __init__(self, draw: Draw, folder: Path, *, is_audited: bool) -> None:
        self.draw = draw
        settings: dict[str, Any] = dict(layers=LAYERS, vector_dtype="float32", output_dir=folder / "audit")
        early = is_audited and draw.at_construction
        self.callback = AttributionCallback(dataset=ROWS, **settings) if early else None
        self.trainer = _trainer(draw, folder, [self.callback] if early else None)
        _add_mover(draw, self.trainer)
        if is_audited and not early:
            self.callback = AttributionCallback(self.trainer, **settings)
            self.trainer.add_callback(self.callback)
        self.trainer.train()

    def compared(self, alone: _Run) -> Outcome:
        assert self.callback is not None and self.callback.finished is not None
        audit = self.callback.finished.audit
        path = str(audit.info.vectors.path)
        if self.losses != alone.losses or not all(
            torch.equal(mine, theirs)
            for mine, theirs in zip(self.trainer.model.parameters(), alone.trainer.model.parameters(), strict=True)
        ):
            return Outcome("disturbed", path)
        expected = _expected(self.draw)
        if set(audit.store.pair_ids) != set(expected):
            return Outcome("different", f"{path}: {len(audit.store)} pairs of {len(expected)}")
        found = torch.stack([torch.stack([audit.store.layer(one), audit.store.context(one)]) for one in LAYERS])
        wanted = torch.stack([expected[pair_id] for pair_id in audit.store.pair_ids], dim=2)
        least = float(cosine_similarity(found.double(), wanted.double(), dim=-1).min())
        rounded = self.draw.settings["bf16"] or self.draw.dtype == "bfloat16"
        if not least >= (EQUAL_ROUNDED if rounded else EQUAL):
            return Outcome("different", f"{path}: cosine {least:.4f}")
        if self.draw.adapter != "trained lora":
            m0 = load_model(_m0_folder(self.draw), dtype="float32").fingerprint
            if audit.info.model.digest != m0.digest:
                return Outcome("different", f"{path}: another fingerprint than the checkpoint's")
        return Outcome("equal", path)

    @property
    def losses(self) -> list[float]:
        return [entry["loss"] for entry in self.trainer.state.log_history if "loss" in entry]


def _trainer(draw: Draw, folder: Path, callbacks: list[Any] | None) -> Any:
    checkpoint = _checkpoint(draw.architecture, draw.noisy)
    torch.manual_seed(draw.seed)
    adapter, policy, settings = ADAPTERS[draw.adapter], str(checkpoint), dict(draw.settings)
    more: dict[str, Any] = {"callbacks": callbacks}
    if draw.adapter == "trained lora":
        policy = _adapted(draw)
    elif draw.nameless:
        policy = _loaded(checkpoint, draw.dtype)
        policy.config.name_or_path = ""
    else:
        settings["model_init_kwargs"] = {"dtype": draw.dtype}
    if draw.adapter != "trained lora" and adapter is not None:
        more["peft_config"] = adapter()
    if draw.reference != "none":
        more["ref_model"] = _loaded(_m0_folder(draw), draw.dtype).train(draw.reference == "training")
    if draw.mover in ("sync", "sync by hand"):
        settings |= {"sync_ref_model": draw.mover == "sync", "ref_model_sync_steps": 1}
    return (BEMATrainer if draw.mover == "bema" else DPOTrainer)(
        policy,
        args=config(folder, **settings),
        train_dataset=Dataset.from_list(ROWS),
        processing_class=AutoTokenizer.from_pretrained(checkpoint),
        **more,
    )


def _add_mover(draw: Draw, trainer: Any) -> None:
    if draw.mover == "sync by hand":
        trainer.add_callback(SyncRefModelCallback(trainer.ref_model, trainer.accelerator))
    elif draw.mover == "bema":
        trainer.add_callback(BEMACallback(update_freq=1, update_ref_model=True, ref_model_update_freq=1))
    elif draw.mover == "hidden":
        trainer.add_callback(_AtStepEnd(lambda: _scale(trainer.ref_model, 1.02)))
    elif draw.mover == "merge":
        trainer.add_callback(_AtStepEnd(lambda: (trainer.model.merge_adapter(), trainer.model.unmerge_adapter())))


class _AtStepEnd(TrainerCallback):
    def __init__(self, act: Callable[[], Any]) -> None:
        self._act = act

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._act()


def _scale(model: torch.nn.Module, factor: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(factor)


def _m0_folder(draw: Draw) -> Path:
    return _checkpoint(draw.architecture, draw.noisy, 1.1 if draw.reference == "other" else 1.0)


def _loaded(folder: Path, dtype: str) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return model


def _adapted(draw: Draw) -> Any:
    torch.manual_seed(draw.seed)
    below = _loaded(_checkpoint(draw.architecture, draw.noisy), draw.dtype)
    return get_peft_model(below, _lora(init_lora_weights=False))


@cache
def _checkpoint(architecture: str, noisy: bool, scale: float = 1.0) -> Path:
    folder = Path(_FOLDER.name) / f"{architecture}-{noisy}-{scale}"
    if architecture == "mixtral":
        torch.manual_seed(0)
        sizes = dict(vocab_size=512, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4)
        experts = dict(num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=512)
        model = AutoModelForCausalLM.from_config(MixtralConfig(**sizes, **experts, pad_token_id=0, eos_token_id=2))
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.15)
    else:
        model = build_tiny_model(architecture)
    _scale(model, scale)
    noise = _DROPOUT.get(architecture, {"attention_dropout": 0.2})
    for name, value in noise.items():
        setattr(model.config, name, value if noisy else 0.0)
    model.save_pretrained(folder)
    build_tiny_tokenizer().save_pretrained(folder)
    return folder


def _expected(draw: Draw) -> dict[str, torch.Tensor]:
    """By pair, its pair and context vector [L, 2, D] as the naive way has them."""
    if draw.adapter == "trained lora":
        return _naive(_adapted(replace(draw, dtype="float32")).merge_and_unload().eval(), draw.settings["max_length"])
    return _naive_of(_m0_folder(draw), draw.settings["max_length"])


@cache
def _naive_of(folder: Path, max_length: int | None) -> dict[str, torch.Tensor]:
    return _naive(_loaded(folder, "float32").eval(), max_length)


def _naive(model: PreTrainedModel, max_length: int | None) -> dict[str, torch.Tensor]:
    pairs = list(PairReader(ROWS, Reading(format="trl")))
    found = {}
    for pair in encode_pairs(pairs, build_tiny_tokenizer(), Encoding(max_length)):
        assert isinstance(pair, EncodedPair)
        chosen, rejected = (
            naive.mean_activation(model, side.prompt_ids, side.response_ids, LAYERS)
            for side in (pair.chosen, pair.rejected)
        )
        found[pair.pair_id] = torch.stack([chosen - rejected, naive.context(model, pair.chosen.prompt_ids, LAYERS)], 1)
    return found


_FOLDER = TemporaryDirectory(prefix="reference-draws-")
