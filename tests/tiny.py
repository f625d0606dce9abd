"""Tiny models and a tiny tokenizer, built from scratch: real code paths at toy size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    LlavaProcessor,
    MambaConfig,
    Olmo2Config,
    OlmoeConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

VOCAB_SIZE = 512
LAYERS = 4
HIDDEN = 32

CHAT_TEMPLATE = (
    "{% if tools %}<|im_start|>system\nTools: {{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if shout is defined and shout %}{{ message['content'] | upper }}{% else %}{{ message['content'] }}{% endif %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_SENTENCES = [
    "The capital of France is Paris, and the weather there is mild.",
    "Write a short letter to a friend about the garden in spring.",
    "I am sorry, but I cannot help with that request.",
    "Please answer in no more than twenty words, as a list.",
    "How do I bake bread at home? Mix flour, water, salt and yeast.",
]


def build_tiny_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(_SENTENCES, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left"
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


BLOCKS_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for block in message['content'] %}{% if block['type'] == 'text' %}{{ block['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Reads content blocks only, as those of several vision-language families do."""


def vision_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        chat_template=BLOCKS_TEMPLATE,
    )


_COMMON: dict[str, Any] = dict(
    vocab_size=VOCAB_SIZE,
    hidden_size=HIDDEN,
    intermediate_size=64,
    num_hidden_layers=LAYERS,
    num_attention_heads=4,
    max_position_embeddings=512,
    pad_token_id=0,
    bos_token_id=None,
    eos_token_id=2,
)
_GROUPED: dict[str, Any] = {**_COMMON, "num_key_value_heads": 2}

ARCHITECTURES: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**_GROUPED),
    "qwen2": lambda: Qwen2Config(**_GROUPED),
    "qwen3": lambda: Qwen3Config(**_GROUPED, head_dim=8),
    "olmo2": lambda: Olmo2Config(**_GROUPED),
    "olmoe": lambda: OlmoeConfig(**_GROUPED, num_experts=4, num_experts_per_tok=2),
    "gemma3": lambda: Gemma3TextConfig(
        **_GROUPED, head_dim=8, sliding_window=8, layer_types=["sliding_attention", "full_attention"] * (LAYERS // 2)
    ),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCAB_SIZE,
        n_embd=HIDDEN,
        n_layer=LAYERS,
        n_head=4,
        n_positions=512,
        bos_token_id=None,
        eos_token_id=2,
    ),
    "gpt_neox": lambda: GPTNeoXConfig(**_COMMON),
    "phi3": lambda: Phi3Config(**_GROUPED),
    "mamba": lambda: MambaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        state_size=4,
        pad_token_id=0,
        eos_token_id=2,
    ),
}


def build_tiny_model(architecture: str) -> PreTrainedModel:
    """A fresh model with seeded weights, large enough in scale that layers differ visibly."""
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(ARCHITECTURES[architecture]())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.15)
    return model.eval()
