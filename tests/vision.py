"""Tiny models that see, with real processors, and preference pairs with small pictures to show them."""

from __future__ import annotations

import io
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin

from tests.tiny import MULTIMODAL, _scaled, build_tiny_tokenizer
from trl_attribution.models.fingerprint import fingerprint
from trl_attribution.models.loading import LoadedModel

MARKS = {
    "qwen2_5_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "llava": "<image>",
    "gemma3": "<start_of_image>",
}
"""What stands for an image in a prompt."""
_NAMED = {
    "image_token": "<image_soft_token>",
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
}
_TOKENS = ["<image>", "<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>", *_NAMED.values()]
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for block in message['content'] %}{% if block['type'] == 'image' %}MARK{% else %}{{ block['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class _ImagesOnly(transformers.Qwen2_5_VLProcessor):
    """Qwen's own without its part for videos, which needs torchvision."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        return (
            None
            if argument_name == "video_processor"
            else super().check_argument_for_proper_class(argument_name, argument)
        )


@cache
def _shared() -> PreTrainedTokenizerFast:
    tokenizer = build_tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": _TOKENS})
    return tokenizer


def _tokenizer() -> PreTrainedTokenizerFast:
    return deepcopy(_shared())


def processor(architecture: str) -> ProcessorMixin:
    """The processor of one of :data:`MARKS`; an image is a few tokens to it."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    tokenizer, template = _tokenizer(), _TEMPLATE.replace("MARK", MARKS[architecture])
    if architecture == "qwen2_5_vl":
        images = Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=56 * 56)
        return _ImagesOnly(images, tokenizer, chat_template=template)
    if architecture == "llava":
        images = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
        return transformers.LlavaProcessor(
            images,
            tokenizer,
            patch_size=14,
            vision_feature_select_strategy="default",
            chat_template=template,
            num_additional_image_tokens=1,
        )
    for name, token in _NAMED.items():
        setattr(tokenizer, name, token)
        setattr(tokenizer, f"{name}_id", tokenizer.convert_tokens_to_ids(token))
    images = Gemma3ImageProcessorPil(size={"height": 28, "width": 28})
    return transformers.Gemma3Processor(images, tokenizer, chat_template=template, image_seq_length=4)


def model(architecture: str) -> PreTrainedModel:
    """The model of the same name, with seeded weights."""
    tokenizer = _tokenizer()
    name, text, vision = MULTIMODAL[architecture]
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in _TOKENS}
    places: dict[str, Any] = {
        "qwen2_5_vl": {
            "image_token_id": ids["<|image_pad|>"],
            "video_token_id": ids["<|video_pad|>"],
            "vision_start_token_id": ids["<|vision_start|>"],
            "vision_end_token_id": ids["<|vision_end|>"],
        },
        "llava": {"image_token_index": ids["<image>"]},
        "gemma3": {
            "mm_tokens_per_image": 4,
            "image_token_index": ids["<image_soft_token>"],
            "boi_token_index": ids["<start_of_image>"],
            "eoi_token_index": ids["<end_of_image>"],
        },
    }[architecture]
    text = {**text, "vocab_size": len(tokenizer)}
    config = getattr(transformers, f"{name}Config")(text_config=text, vision_config=vision, **places)
    torch.manual_seed(0)
    return _scaled(getattr(transformers, f"{name}ForConditionalGeneration")(config))


def vision_folder(architecture: str, folder: Path) -> Path:
    """A checkpoint; of its processor only what can be loaded again without torchvision."""
    seeing = processor(architecture)
    model(architecture).save_pretrained(folder)
    (seeing.tokenizer if architecture == "qwen2_5_vl" else seeing).save_pretrained(folder)
    return folder


def loaded(architecture: str) -> LoadedModel:
    """Model and processor as :func:`load_model` gives them."""
    one, seeing = model(architecture), processor(architecture)
    return LoadedModel(one, seeing.tokenizer, architecture, fingerprint(one, seeing.tokenizer), processor=seeing)


def picture(number: int) -> Image.Image:
    """A small picture of noise, another one for each number."""
    pixels = np.random.default_rng(number).integers(0, 255, (30 + number % 3, 40, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png(number: int) -> bytes:
    """The same as a file."""
    written = io.BytesIO()
    picture(number).save(written, "PNG")
    return written.getvalue()


def image_rows(count: int = 6, *, blocks: bool = False) -> list[dict[str, Any]]:
    """Pairs about pictures: one each, but two in row 1 and none in row 2; rows 3 and 4 differ in the picture alone.

    With ``blocks`` the prompts say where the pictures stand, else TRL puts them first.
    """
    rows = []
    for number in range(count):
        told = 3 if number == 4 else number
        pictures = {1: [1, 101], 2: []}.get(number, [number])
        asked: Any = f"What is in number {told}?"
        if blocks:
            places = [{"type": "image", "text": None} for _ in pictures]
            asked = [{"type": "text", "text": "Look: "}, *places, {"type": "text", "text": asked}]
        rows.append(
            {
                "prompt": [{"role": "user", "content": asked}],
                "chosen": [{"role": "assistant", "content": f"A cat {told}" + " and more" * (told % 3)}],
                "rejected": [{"role": "assistant", "content": "Nothing." + " Really." * (told % 2)}],
                "images": [picture(one) for one in pictures],
                "source": "ab"[number % 2],
            }
        )
    return rows
