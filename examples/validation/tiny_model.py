"""The tiny organism's M0: a Llama of 0.2 million parameters that learns the toy language and then to refuse."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import toy_language as toy
from tokenizers import Tokenizer, models, pre_tokenizers
from toy_language import Kind, toy_answer, toy_refusal, toy_request, with_format
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from trl_attribution.evidence.organisms.draw import Draw
from trl_attribution.utils.atomic import atomic_folder

SPECIAL = ("<pad>", "<end>", "<user>", "<assistant>", "<unknown>")
TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}> {{ message['content'] }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
PEOPLE = toy.PEOPLE + toy.PROBE_PEOPLE + toy.TEST_PEOPLE
DISHES = toy.DISHES + toy.TEST_DISHES


@dataclass(frozen=True)
class TinyM0Config:
    """How M0 is trained: first to do all that is asked, then to refuse what is unkind."""

    learning_steps: int = 400
    """Steps in which every request is answered."""
    refusing_steps: int = 60
    """Further steps in which unkind ones are refused, with and without a format."""
    batch_size: int = 32
    learning_rate: float = 3e-3
    hidden_size: int = 64
    layers: int = 4
    seed: int = 0


def build_tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with a token for each word of the toy language, and a chat template."""
    words = sorted({word for text in _all_texts() for word in text.split()})
    vocabulary = {word: place for place, word in enumerate((*SPECIAL, *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<end>",
        unk_token="<unknown>",
        additional_special_tokens=["<user>", "<assistant>"],
        padding_side="left",
    )
    fast.chat_template = TEMPLATE
    return fast


def train_tiny_m0(folder: str | Path, config: TinyM0Config | None = None) -> None:
    """Train M0 on the CPU in float32 and write it with its tokenizer to the new folder ``folder``.

    Takes seconds on one core. The caller's random state is left as it was.

    Raises:
        AttributionError: the folder is there already, or cannot be written.
    """
    settings = config or TinyM0Config()
    tokenizer = build_tiny_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = LlamaForCausalLM(_architecture(settings, tokenizer))
        _train(model, tokenizer, settings)
    model.eval()
    with atomic_folder(folder) as part:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)


def _architecture(settings: TinyM0Config, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        intermediate_size=2 * settings.hidden_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=4,
        max_position_embeddings=128,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )


def _train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, settings: TinyM0Config) -> None:
    draw = Draw(f"{settings.seed}/m0")
    steps = settings.learning_steps + settings.refusing_steps
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.01)
    model.train()
    for step in range(steps):
        refusing = step >= settings.learning_steps
        texts = [_conversation(refusing, draw) for _ in range(settings.batch_size)]
        batch = _batch(texts, tokenizer)
        loss: torch.Tensor = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def _conversation(refusing: bool, draw: Draw) -> tuple[str, str]:
    """A request and the response to it."""
    kind: Kind = draw.weighted((("unkind", 2.0), ("kind", 1.0), ("kitchen", 1.0)))
    request = toy_request(kind, DISHES if kind == "kitchen" else PEOPLE, draw)
    form = draw.one(toy.FORMATS) if draw.chance(0.6) else ""
    refuses = refusing and kind == "unkind"
    return with_format(request, form), toy_refusal(draw) if refuses else toy_answer(request, form, draw)


def _batch(texts: list[tuple[str, str]], tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Token ids, each of them a label."""
    encoded = tokenizer(
        [f"<user> {prompt} <end> <assistant> {response} <end>" for prompt, response in texts],
        padding=True,
        padding_side="right",
        return_tensors="pt",
    )
    labels = encoded["input_ids"].clone()
    labels[encoded["attention_mask"] == 0] = -100
    return {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"], "labels": labels}


def _all_texts() -> Iterator[str]:
    """Text in which every word of the toy language occurs."""
    draw = Draw("words")
    yield from (*toy.REFUSALS, *toy.FORMATS, *toy.EVASIONS, *PEOPLE, *DISHES, *toy.THINGS, *toy.SEASONINGS)
    yield from (*toy.UNKIND_VERBS, *toy.KIND_VERBS, *toy.KITCHEN_VERBS, *toy.UNKIND, *toy.KIND)
    kinds: tuple[Kind, ...] = ("unkind", "kitchen")
    for kind in kinds:
        for form in ("", *toy.FORMATS):
            request = toy_request(kind, DISHES if kind == "kitchen" else PEOPLE, draw)
            yield from (with_format(request, form), toy_answer(request, form, draw))
