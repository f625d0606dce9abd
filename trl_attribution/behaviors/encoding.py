"""Examples to token ids exactly as a dataset pair's, and back from activations to examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from trl_attribution.behaviors.examples import Example
from trl_attribution.behaviors.judging import Prompt
from trl_attribution.errors import ProbeError
from trl_attribution.pairs import EncodedResponse, Encoder, Encoding, Pair, RowFault, encode_pair

if TYPE_CHECKING:
    from torch import Tensor

    from trl_attribution.activations import ActivationEngine, PromptGroup

PromptFormat = Literal["auto", "chat", "text"]
"""``chat``: a text prompt becomes one user message; ``auto``: chat where the tokenizer has a chat template."""

_ANYTHING = "Yes."


@dataclass(frozen=True)
class ExampleActivations:
    """Mean response activations of one prompt on M0, and its context; float32."""

    undesired: Tensor
    """``[U, L, D]``"""
    desired: Tensor
    """``[R, L, D]``"""
    context: Tensor | None
    """``[L, D]``, None where there is no prompt."""

    @property
    def direction(self) -> Tensor:
        """``[L, D]``: this prompt's behavior vector."""
        return self.undesired.mean(dim=0) - self.desired.mean(dim=0)


@dataclass(frozen=True)
class EncodedExample:
    """Token ids of one example's responses, each with the prompt ids it is read after."""

    undesired: list[EncodedResponse]
    desired: list[EncodedResponse]
    has_prompt: bool


def check_prompt_format(prompt_format: str) -> None:
    """Refuse a format that there is not.

    Raises:
        ProbeError: it is unknown.
    """
    if prompt_format not in ("auto", "chat", "text"):
        raise ProbeError(f"prompt format {prompt_format!r} is unknown; choose auto, chat or text")


def as_chat(prompt: Prompt, prompt_format: PromptFormat, tokenizer: Encoder, where: str) -> bool:
    """Whether ``prompt`` goes through the tokenizer's chat template; ``where`` is its place and field, for messages.

    Raises:
        ProbeError: messages without a chat template or with ``text``, or an unknown format.
    """
    check_prompt_format(prompt_format)
    has_template = bool(tokenizer.chat_template)
    if isinstance(prompt, list) and (prompt_format == "text" or not has_template):
        reason = "the prompt format is 'text'" if prompt_format == "text" else "the tokenizer has no chat template"
        raise ProbeError(f"{where} is a list of messages, but {reason}; give the prompt as text")
    if prompt_format == "chat" and not has_template:
        raise ProbeError("the prompt format is 'chat', but the tokenizer has no chat template; use 'text' or 'auto'")
    return prompt_format == "chat" or (prompt_format == "auto" and has_template)


def encode_example(
    example: Example, tokenizer: Encoder, encoding: Encoding, prompt_format: PromptFormat
) -> EncodedExample:
    """Token ids of every response of ``example``, each encoded as half of a preference pair.

    TRL splits prompt from response by both halves of a pair, so every response is paired with the first one of
    the other side.

    Raises:
        ProbeError: the prompt leaves no room for a response, or does not fit the prompt format.
    """
    where = f"{example.location}: field `prompt`"
    chat = example.has_prompt and as_chat(example.prompt, prompt_format, tokenizer, where)

    def encoded(undesired: str, desired: str) -> tuple[EncodedResponse, EncodedResponse]:
        pair = _pair(example, undesired, desired, chat)
        try:
            both = encode_pair(pair, tokenizer, encoding)
        except RowFault as fault:
            field = {"chosen": "undesired", "rejected": "desired"}.get(fault.field, fault.field)
            raise ProbeError(f"{example.location}: field `{field}`: {fault.detail}") from fault
        return both.chosen, both.rejected

    first_undesired, first_desired = encoded(example.undesired[0], example.desired[0])
    return EncodedExample(
        undesired=[first_undesired] + [encoded(text, example.desired[0])[0] for text in example.undesired[1:]],
        desired=[first_desired] + [encoded(example.undesired[0], text)[1] for text in example.desired[1:]],
        has_prompt=example.has_prompt,
    )


def encode_responses(
    prompt: Prompt,
    responses: Sequence[str],
    tokenizer: Encoder,
    encoding: Encoding,
    prompt_format: PromptFormat = "auto",
    where: str = "the prompt",
) -> list[PromptGroup]:
    """Token ids of ``responses`` to ``prompt``, in order, those with the same prompt tokens grouped.

    Raises:
        ProbeError: the prompt leaves no room for a response, or does not fit the prompt format.
    """
    # Both halves of a pair are cut alike, so the other half does not matter.
    both = Example(prompt, tuple(responses), tuple(responses[:1]), where)
    return _grouped(encode_example(both, tokenizer, encoding, prompt_format).undesired)[0]


def example_activations(engine: ActivationEngine, encoded: Sequence[EncodedExample]) -> list[ExampleActivations]:
    """Mean response activations and context of every example, all in one pass over the model."""
    import torch

    groups: list[PromptGroup] = []
    places: list[list[tuple[int, int]]] = []
    for one in encoded:
        own, where = _grouped(one.undesired + one.desired)
        places.append([(len(groups) + group, member) for group, member in where])
        groups.extend(own)
    results = engine.activations(groups)
    collected = []
    for one, where in zip(encoded, places, strict=True):
        means = torch.stack([results[group].responses[member] for group, member in where])
        split = len(one.undesired)
        # Truncation can leave responses with different prompts: as for a pair, the context is the mean of theirs.
        contexts = [results[group].context for group in dict.fromkeys(group for group, _ in where)]
        context = torch.stack(contexts).mean(dim=0) if one.has_prompt else None
        collected.append(ExampleActivations(means[:split], means[split:], context))
    return collected


def control_activations(
    engine: ActivationEngine,
    controls: Sequence[Example],
    tokenizer: Encoder,
    encoding: Encoding,
    prompt_format: PromptFormat,
) -> list[ExampleActivations]:
    """Context, and mean activations of the responses where there are some, of every control."""
    # A context does not depend on what follows it, but the forward pass needs a response.
    filled = [one if one.undesired else replace(one, undesired=(_ANYTHING,), desired=(_ANYTHING,)) for one in controls]
    found = example_activations(engine, [encode_example(one, tokenizer, encoding, prompt_format) for one in filled])
    return [
        activations if one.undesired else replace(activations, undesired=activations.undesired[:0])
        for one, activations in zip(controls, found, strict=True)
    ]


def _grouped(responses: Sequence[EncodedResponse]) -> tuple[list[PromptGroup], list[tuple[int, int]]]:
    """Responses that share their prompt's tokens in one group; and (group, member) of each response."""
    from trl_attribution.activations import PromptGroup

    members: dict[tuple[int, ...], list[list[int]]] = {}
    keys: list[tuple[int, ...]] = []
    places = []
    for response in responses:
        key = tuple(response.prompt_ids)
        if key not in members:
            members[key] = []
            keys.append(key)
        places.append((keys.index(key), len(members[key])))
        members[key].append(response.response_ids)
    return [PromptGroup(prompt_ids=list(key), responses=members[key]) for key in keys], places


def _pair(example: Example, undesired: str, desired: str, chat: bool) -> Pair:
    prompt: Any = example.prompt
    chosen: Any = undesired
    rejected: Any = desired
    if chat:
        prompt = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        chosen, rejected = ([{"role": "assistant", "content": text}] for text in (undesired, desired))
    return Pair(
        pair_id="",
        flipped_id="",
        row=0,
        location=example.location,
        source="",
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        tools=None,
        chat_template_kwargs={},
    )
