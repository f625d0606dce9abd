"""Tiny models and a tiny tokenizer, built from scratch: real code paths at toy size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
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
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

try:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil as CLIPImageProcessor
except ImportError:  # transformers 4, whose own needs Pillow only
    from transformers import CLIPImageProcessor

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
        image_processor=CLIPImageProcessor(),
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

ARCHITECTURES: dict[str, Callable[[], PretrainedConfig]] = {
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


# As deep as the decoder, and with more parameters where that is possible.
_VISION: dict[str, Any] = dict(
    hidden_size=64,
    intermediate_size=256,
    num_hidden_layers=LAYERS,
    num_attention_heads=2,
    image_size=28,
    patch_size=14,
)
_QWEN_VISION: dict[str, Any] = dict(
    depth=LAYERS, hidden_size=64, intermediate_size=256, num_heads=2, out_hidden_size=HIDDEN
)
_TEXT: dict[str, Any] = {**_GROUPED, "head_dim": 8}
_ROPE: dict[str, Any] = dict(rope_type="default", rope_theta=10000.0)
_ROPE_3D: dict[str, Any] = {**_ROPE, "mrope_section": [1, 1, 2]}

# Classes with a vision tower that TRL trains on text too, and their configs; imported by name, as TRL does.
MULTIMODAL: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "qwen2_5_vl": ("Qwen2_5_VL", {**_GROUPED, "rope_parameters": _ROPE_3D}, _QWEN_VISION),
    "qwen3_vl": (
        "Qwen3VL",
        {**_TEXT, "rope_parameters": _ROPE_3D},
        {**_QWEN_VISION, "deepstack_visual_indexes": [1], "num_position_embeddings": 16},
    ),
    "qwen3_5": (
        "Qwen3_5",
        {
            **_TEXT,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        },
        {**_QWEN_VISION, "num_position_embeddings": 16},
    ),
    "llama4": (
        "Llama4",
        {
            **_TEXT,
            "intermediate_size_mlp": 64,
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "attention_chunk_size": 64,
        },
        {**_VISION, "vision_output_dim": HIDDEN, "projector_input_dim": HIDDEN, "projector_output_dim": HIDDEN},
    ),
    "mllama": (
        "Mllama",
        {**_GROUPED, "bos_token_id": 1, "cross_attention_layers": [3], "rope_parameters": _ROPE},
        {
            **_VISION,
            "num_global_layers": 1,
            "attention_heads": 2,
            "vision_output_dim": HIDDEN,
            "intermediate_layers_indices": [1],
            "max_num_tiles": 1,
            "supported_aspect_ratios": [[1, 1]],
        },
    ),
    "mistral3": ("Mistral3", {**_TEXT, "model_type": "mistral"}, {**_VISION, "model_type": "pixtral", "head_dim": 32}),
    "llava": ("Llava", {**_GROUPED, "model_type": "llama"}, {**_VISION, "model_type": "clip_vision_model"}),
    "internvl": (
        "InternVL",
        {**_GROUPED, "model_type": "qwen2"},
        {**_VISION, "image_size": [28, 28], "patch_size": [14, 14]},
    ),
    "gemma3": (
        "Gemma3",
        {**_TEXT, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * (LAYERS // 2)},
        _VISION,
    ),
}


def build_tiny_multimodal(architecture: str) -> PreTrainedModel:
    """As :func:`build_tiny_model`, a model with a vision tower."""
    name, text, vision = MULTIMODAL[architecture]
    config = getattr(transformers, f"{name}Config")(text_config=text, vision_config=vision)
    torch.manual_seed(0)
    return _scaled(getattr(transformers, f"{name}ForConditionalGeneration")(config))


def build_tiny_model(architecture: str) -> PreTrainedModel:
    """A fresh model with seeded weights, large enough in scale that layers differ visibly."""
    torch.manual_seed(0)
    return _scaled(AutoModelForCausalLM.from_config(ARCHITECTURES[architecture]()))


def build_moved_model(architecture: str = "llama") -> PreTrainedModel:
    """The model of :func:`build_tiny_model` with all of its weights moved, as training leaves it: an M1."""
    model = build_tiny_model(architecture)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def _scaled(model: PreTrainedModel) -> PreTrainedModel:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.15)
    return model.eval()
