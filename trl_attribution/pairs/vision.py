"""Pairs with images, encoded by TRL's own collator: a processor decides how many tokens an image is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from trl_attribution.errors import WRONG_VALUES, ModelError, SettingsError
from trl_attribution.pairs.encoded import EncodedPair, EncodedResponse
from trl_attribution.pairs.faults import RowFault
from trl_attribution.pairs.formats import Pair
from trl_attribution.pairs.messages import is_place_of_image
from trl_attribution.utils.compat import is_before, version_of
from trl_attribution.utils.text import printable

if TYPE_CHECKING:
    from torch import Tensor

    from trl_attribution.pairs.encoding import Encoder, Encoding

SINCE = "1.16"
"""The first version of TRL whose collator of images is known."""


def check_vision(encoder: Encoder, encoding: Encoding) -> None:
    """Refuse what cannot encode images.

    Raises:
        ModelError: M0 has no processor that takes images.
        SettingsError: TRL is too old, or would cut sequences at the wrong end.
    """
    if not hasattr(encoder, "image_processor"):
        raise ModelError(
            "the dataset holds images, and M0 has no processor that takes any: it is a model of text, or its processor "
            "could not be loaded (a warning said why: most need pip install pillow torchvision). Give a "
            "vision-language model; in a run, give the trainer the processor as processing_class."
        )
    if is_before("trl", SINCE):
        raise SettingsError(f"images are audited from TRL {SINCE} on; {version_of('trl')} is installed. Upgrade it.")
    if encoding.truncation_mode != "keep_start":
        raise SettingsError(
            f"truncation_mode: {encoding.truncation_mode} would cut images off; TRL takes keep_start alone with them"
        )


def encode_with_images(
    pairs: Sequence[Pair], processor: Any, encoding: Encoding, check_text: Callable[[Pair], None]
) -> list[EncodedPair | RowFault]:
    """For each pair its tokens, or the fault that keeps it out; ``check_text`` looks for text that vanishes."""
    check_vision(processor, encoding)
    found: list[EncodedPair | RowFault] = []
    for pair in pairs:
        try:
            encoded = _encoded(pair, processor, encoding)  # first: what it says of a place too many is of images
            if pair.conversational:
                check_text(_without_images(pair))
            found.append(encoded)
        except RowFault as fault:
            found.append(fault)
    return found


def collated(pair: Pair, processor: Any, encoding: Encoding) -> dict[str, Tensor]:
    """TRL's batch of ``pair`` alone: the chosen row and the rejected one, with all that the model takes besides.

    Raises:
        RowFault: an image has changed, or the chat template or the processor refuses the row.
    """
    import jinja2
    from trl.trainer.dpo_trainer import DataCollatorForVisionPreference

    tokenizer = processor.tokenizer
    if tokenizer.pad_token is None:  # as TRL's trainer does
        tokenizer.pad_token = tokenizer.eos_token
    example = {
        "prompt": pair.prompt,
        "chosen": pair.chosen,
        "rejected": pair.rejected,
        "images": [image.open() for image in pair.images or ()],
        "chat_template_kwargs": pair.chat_template_kwargs,
    }
    collate = DataCollatorForVisionPreference(processor, max_length=encoding.max_length)
    try:
        return dict(collate([example]))
    except (jinja2.TemplateError, *WRONG_VALUES) as error:
        raise RowFault(
            "processor_error",
            "prompt",
            f"the model's chat template or processor refuses it with its {len(example['images'])} image(s) "
            f"({printable(error)}). Give each image one place in the prompt; in messages of plain text TRL makes it, "
            "so write no image token of the model there.",
        ) from error


def _encoded(pair: Pair, processor: Any, encoding: Encoding) -> EncodedPair:
    batch = collated(pair, processor, encoding)
    chosen, rejected = _sides(batch)
    limit = encoding.max_length
    for field, side in (("chosen", chosen), ("rejected", rejected)):
        if not side.response_ids and limit is not None and len(side.prompt_ids) >= limit:
            raise RowFault(
                "prompt_too_long",
                "prompt",
                f"with its images it fills max_length={limit}, so TRL trains on no token of the responses, or fails. "
                "Raise max_length (--max-length, None for no limit), shorten the prompt, or scale the images down.",
            )
        if not side.response_ids:
            raise RowFault("no_response_tokens", field, "the response comes to no token at all. Drop the row.")
    alike = None
    if chosen == rejected:
        is_cut = limit is not None and len(chosen.prompt_ids) + len(chosen.response_ids) == limit
        alike = "truncation" if is_cut else "template" if pair.conversational else "tokenizer"
    return EncodedPair(
        pair.pair_id,
        chosen,
        rejected,
        alike,  # type: ignore[arg-type]  # one of its words
        collate=partial(collated, pair, processor, encoding),
        location=pair.location,
    )


def _sides(batch: Mapping[str, Tensor]) -> list[EncodedResponse]:
    found = []
    for ids, attended, is_response in zip(
        batch["input_ids"].tolist(), batch["attention_mask"].tolist(), batch["completion_mask"].tolist(), strict=True
    ):
        rows = [(token, part) for token, seen, part in zip(ids, attended, is_response, strict=True) if seen]
        found.append(EncodedResponse([one for one, part in rows if not part], [one for one, part in rows if part]))
    return found


def _without_images(pair: Pair) -> Pair:
    def kept(content: Any) -> Any:
        return content if isinstance(content, str) else [one for one in content if not is_place_of_image(one)]

    assert isinstance(pair.prompt, list)
    prompt = [{**one, "content": kept(one["content"])} if one.get("content") else one for one in pair.prompt]
    return replace(pair, prompt=prompt, images=None)
