"""Token ids of a pair, the very ones that TRL's DPOTrainer and its collator would train on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from trl_attribution.errors import WRONG_VALUES, ModelError, SettingsError
from trl_attribution.pairs.encoded import Alike, EncodedPair, EncodedResponse
from trl_attribution.pairs.faults import RowFault
from trl_attribution.pairs.formats import Pair, Response
from trl_attribution.pairs.identity import without_none
from trl_attribution.pairs.messages import Messages
from trl_attribution.pairs.vanishing import TemplateCheck
from trl_attribution.pairs.vision import encode_with_images
from trl_attribution.utils.compat import drops_empty_keys, keeps_whole_prompts
from trl_attribution.utils.text import printable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, ProcessorMixin

Encoder: TypeAlias = "PreTrainedTokenizerBase | ProcessorMixin"
"""What TRL is given as ``processing_class``: a processor where the checkpoint has one, else its tokenizer."""

TRUNCATION_MODES = ("keep_start", "keep_end")
# Arguments of apply_chat_template that act on tokenizing: a row that sets one is tokenized by itself, as TRL does.
_TOKENIZER_OPTIONS = frozenset(
    (
        "tokenize",
        "sanitize_control_tokens",
        "padding",
        "truncation",
        "max_length",
        "return_tensors",
        "return_dict",
        "return_assistant_tokens_mask",
        "tokenizer_kwargs",
    )
)


def tokenizer_of(encoder: Encoder) -> PreTrainedTokenizerBase:
    """The tokenizer of a processor, or the one given."""
    from transformers import ProcessorMixin

    tokenizer: PreTrainedTokenizerBase = encoder.tokenizer if isinstance(encoder, ProcessorMixin) else encoder
    return tokenizer


@dataclass(frozen=True)
class Encoding:
    """How long a sequence may get, with DPOConfig's names, defaults and meaning."""

    max_length: int | None = 1024
    """Most tokens of prompt and response together, None for no limit."""
    truncation_mode: str = "keep_start"
    """Which end of a longer sequence stays."""

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < 1:
            raise SettingsError(f"max_length is {self.max_length}. Give at least 1, or None for no limit.")
        if self.truncation_mode not in TRUNCATION_MODES:
            raise SettingsError(
                f"unknown truncation_mode '{self.truncation_mode}'. Choose one of: {', '.join(TRUNCATION_MODES)}."
            )


def encode_pair(pair: Pair, tokenizer: Encoder, encoding: Encoding) -> EncodedPair:
    """Tokenize a pair exactly as the installed TRL's ``DPOTrainer`` does: template, EOS, prompt split and truncation.

    Raises:
        RowFault: the prompt alone fills ``max_length``, so that TRL drops the pair or trains on nothing of it
            (``prompt_too_long``), the chat template refuses it (``template_error``) or leaves its text out
            (``text_vanishes``), or no token of a response is left (``no_response_tokens``).
        ModelError: the tokenizer lacks a chat template or an EOS token that the pair needs.
    """
    (result,) = encode_pairs([pair], tokenizer, encoding)
    if isinstance(result, RowFault):
        raise result
    return result


def encode_pairs(pairs: Sequence[Pair], tokenizer: Encoder, encoding: Encoding) -> list[EncodedPair | RowFault]:
    """``encode_pair`` for many in one tokenizer call, which fast tokenizers spread over the cores.

    Args:
        pairs: what to tokenize.
        tokenizer: M0's, or its processor where the checkpoint has one: TRL encodes text through it too.
        encoding: truncation.

    Returns:
        For each pair, in order, its tokens or the fault that keeps it out.

    Raises:
        ModelError: as for ``encode_pair``.
    """
    from transformers import ProcessorMixin

    if any(pair.images is not None for pair in pairs):
        return encode_with_images(pairs, tokenizer, encoding, _checker(tokenizer))
    encode = _one_by_one if isinstance(tokenizer, ProcessorMixin) else _tokenized
    split = [pair if _is_pair(pair) else _alone(pair) for pair in pairs]
    singles = [one for part in split for one in (part if isinstance(part, list) else [part])]
    outcomes = iter(encode(singles, tokenizer))
    found: list[EncodedPair | RowFault] = []
    for pair, part in zip(pairs, split, strict=True):
        if pair.tokens:
            found.append(_joined(pair, [_finished(pair, _brought(side), encoding) for side in pair.tokens]))
        elif isinstance(part, list):
            found.append(_joined(pair, [_finished(one, next(outcomes), encoding) for one in part]))
        else:
            found.append(_finished(pair, next(outcomes), encoding))
    return found


def _is_pair(pair: Pair) -> bool:
    return pair.kind == "pair"


def _alone(pair: Pair) -> list[Pair]:
    """Each response of a contrast as a pair of itself: TRL's other trainers split a prompt off by one response."""
    if pair.tokens:
        return []
    texts = [Response(pair.prompt, pair.chosen), Response(pair.prompt, pair.rejected), *pair.further]
    return [
        replace(pair, prompt=one.prompt, chosen=one.text, rejected=one.text, further=(), weights=(1.0, -1.0))
        for one in texts
        if not (pair.lacks_own and not one.text)
    ]


def _joined(pair: Pair, sides: Sequence[EncodedPair | RowFault]) -> EncodedPair | RowFault:
    """The responses of a contrast together again, or what is wrong with the first that has a fault."""
    fault = next((side for side in sides if isinstance(side, RowFault)), None)
    if fault is not None:
        return fault
    if pair.lacks_own:
        return RowFault(
            "no_own_responses",
            "prompt",
            "M0's own responses to it are not at hand, which are the other side of this example. Have them drawn, or "
            "give them (--own-responses FILE).",
        )
    first, second, *others = (side.chosen for side in sides if isinstance(side, EncodedPair))
    alike: Alike | None = "tokenizer" if all(one == first for one in (second, *others)) else None
    return EncodedPair(pair.pair_id, first, second, alike, tuple(others), pair.weights)


@dataclass(frozen=True, slots=True)
class _Sequences:
    """Whole token sequences of a pair."""

    prompt: list[int]
    prompt_chosen: list[int]
    prompt_rejected: list[int]
    written_alike: bool
    """The template makes the same of both responses."""


def _sequences(ids: Sequence[list[int]], written_alike: bool) -> _Sequences:
    prompt, prompt_chosen, prompt_rejected = ids
    return _Sequences(prompt, prompt_chosen, prompt_rejected, written_alike)


def _brought(side: EncodedResponse) -> _Sequences:
    """Token ids that a row brought, to be cut as those of its text would be."""
    whole = [*side.prompt_ids, *side.response_ids]
    return _Sequences(side.prompt_ids, whole, whole, written_alike=False)


def encode_prompt(
    prompt: str | Messages,
    encoder: Encoder,
    tools: list[dict[str, Any]] | None = None,
    chat_template_kwargs: dict[str, Any] | None = None,
) -> list[int]:
    """Token ids of a prompt by itself, with what the chat template puts before an answer.

    Raises:
        RowFault: the chat template refuses it, or leaves its text out.
    """
    if isinstance(prompt, str):
        return _ids(encoder, prompt)
    pair = Pair("", "", 0, "", "", prompt, [], [], tools, chat_template_kwargs or {})
    options = {"tools": tools, **pair.chat_template_kwargs}
    ids = _ids(encoder, prompt, add_generation_prompt=True, **options)
    TemplateCheck(lambda other: [_ids(encoder, other.prompt, add_generation_prompt=True, **options)]).check(pair, [ids])
    return ids


def _tokenized(pairs: Sequence[Pair], tokenizer: Any) -> list[_Sequences | RowFault]:
    outcomes: dict[int, _Sequences | RowFault] = {}
    rendered: dict[int, list[str]] = {}
    check = TemplateCheck(lambda pair: _render([pair], tokenizer)[0])
    written = _written_together(pairs, tokenizer)
    for place, pair in enumerate(pairs):
        try:
            if not pair.conversational:
                rendered[place] = _texts(pair, tokenizer)
            elif _TOKENIZER_OPTIONS.isdisjoint(pair.chat_template_kwargs):
                texts = written[place] if place in written else _render([pair], tokenizer)[0]
                check.check(pair, texts)
                rendered[place] = texts
            else:
                (outcomes[place],) = _one_by_one([pair], tokenizer)
        except RowFault as fault:
            outcomes[place] = fault
    for conversational in (True, False):
        places = [place for place in rendered if pairs[place].conversational is conversational]
        texts = [text for place in places for text in rendered[place]]
        # The template has written the special tokens of a conversation already.
        ids = _tokenize(texts, tokenizer, add_special_tokens=not conversational)
        for number, place in enumerate(places):
            _, first, second = rendered[place]
            outcomes[place] = _sequences(ids[3 * number : 3 * number + 3], first == second)
    return [outcomes[place] for place in range(len(pairs))]


def _written_together(pairs: Sequence[Pair], tokenizer: Any) -> dict[int, list[str]]:
    """By place, what the template makes of the pairs that give it nothing but messages; none if it refuses one."""
    places = [
        place
        for place, pair in enumerate(pairs)
        if pair.conversational and pair.tools is None and not pair.chat_template_kwargs
    ]
    try:
        return dict(zip(places, _render([pairs[place] for place in places], tokenizer), strict=True))
    except RowFault:
        return {}


def _checker(encoder: Encoder) -> Callable[[Pair], None]:
    check = TemplateCheck(lambda pair: _pair_ids(pair, encoder))
    return lambda pair: check.check(pair, _pair_ids(pair, encoder))


def _one_by_one(pairs: Sequence[Pair], encoder: Encoder) -> list[_Sequences | RowFault]:
    """Text by text, as TRL does: what a processor makes of one may depend on its neighbors in a batch."""
    check = TemplateCheck(lambda pair: _pair_ids(pair, encoder))
    outcomes: list[_Sequences | RowFault] = []
    for pair in pairs:
        try:
            ids = _pair_ids(pair, encoder)
            if pair.conversational:
                check.check(pair, ids)
            outcomes.append(_sequences(ids, written_alike=pair.conversational))
        except RowFault as fault:
            outcomes.append(fault)
    return outcomes


def _pair_ids(pair: Pair, encoder: Encoder) -> list[list[int]]:
    """Token ids of prompt, prompt + chosen, prompt + rejected."""
    if not pair.conversational:
        return [_ids(encoder, text) for text in _texts(pair, tokenizer_of(encoder))]
    _check_template(encoder)
    prompt, chosen, rejected, options = _conversation(pair)
    return [
        _ids(encoder, prompt, add_generation_prompt=True, **options),
        _ids(encoder, chosen, **options),
        _ids(encoder, rejected, **options),
    ]


def _ids(encoder: Any, part: str | Messages, **options: Any) -> list[int]:
    """Token ids of one text or conversation; processors read messages of blocks and give a batch of one."""
    from transformers import ProcessorMixin
    from trl.data_utils import prepare_multimodal_messages

    is_processor = isinstance(encoder, ProcessorMixin)
    if isinstance(part, str):
        result = encoder(text=part)
    else:
        with _template_faults():
            messages = prepare_multimodal_messages(part, images=[]) if is_processor else part
            result = encoder.apply_chat_template(messages, tokenize=True, return_dict=True, **options)
    return [int(token) for token in (result["input_ids"][0] if is_processor else result["input_ids"])]


def _texts(pair: Pair, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The three plain texts to tokenize: prompt, prompt + chosen, prompt + rejected."""
    eos = tokenizer.eos_token
    if eos is None:
        raise ModelError(
            "the tokenizer has no EOS token, which TRL appends to every response. Set tokenizer.eos_token."
        )
    prompt = str(pair.prompt)
    responses = (text if text.endswith(eos) else text + eos for text in (str(pair.chosen), str(pair.rejected)))
    return [prompt, *(prompt + response for response in responses)]


def _conversation(pair: Pair) -> tuple[Messages, Messages, Messages, dict[str, Any]]:
    """Prompt, prompt + chosen, prompt + rejected, and what the template gets besides."""
    parts: tuple[Any, ...] = pair.prompt, pair.chosen, pair.rejected, {"tools": pair.tools, **pair.chat_template_kwargs}
    prompt, chosen, rejected, options = (without_none(part) for part in parts) if drops_empty_keys() else parts
    return prompt, prompt + chosen, prompt + rejected, options


def _render(pairs: Sequence[Pair], tokenizer: Any) -> list[list[str]]:
    """The three conversations of each pair as the chat template writes them; all have the options of the first."""
    if not pairs:
        return []
    _check_template(tokenizer)
    *_, options = _conversation(pairs[0])
    prompts, chosen, rejected = zip(*(_conversation(pair)[:3] for pair in pairs), strict=True)
    with _template_faults():
        alone = tokenizer.apply_chat_template(list(prompts), tokenize=False, add_generation_prompt=True, **options)
        whole = tokenizer.apply_chat_template([*chosen, *rejected], tokenize=False, **options)
    return [list(texts) for texts in zip(alone, whole[: len(pairs)], whole[len(pairs) :], strict=True)]


def _check_template(encoder: Encoder) -> None:
    if not encoder.chat_template:
        raise ModelError(
            "the tokenizer has no chat template, but the dataset holds messages. Use the model's instruct or SFT "
            "checkpoint, or set tokenizer.chat_template."
        )


@contextmanager
def _template_faults() -> Iterator[None]:
    import jinja2

    try:
        yield
    # A template is a program of somebody else's: it may divide by zero, or call itself without end.
    except (jinja2.TemplateError, *WRONG_VALUES) as error:
        raise RowFault(
            "template_error",
            "messages",
            f"the model's chat template refuses them ({printable(error)}). Reorder or merge the messages to suit it.",
        ) from error


def _tokenize(texts: list[str], tokenizer: PreTrainedTokenizerBase, add_special_tokens: bool) -> list[list[int]]:
    if not texts:
        return []
    tokens = tokenizer(
        text=texts,
        add_special_tokens=add_special_tokens,
        return_attention_mask=False,
        return_token_type_ids=False,
    )
    ids: list[list[int]] = tokens["input_ids"]
    return ids


def _finished(pair: Pair, outcome: _Sequences | RowFault, encoding: Encoding) -> EncodedPair | RowFault:
    if isinstance(outcome, RowFault):
        return outcome
    try:
        return _split(pair, outcome, encoding)
    except RowFault as fault:
        return fault


def _split(pair: Pair, whole: _Sequences, encoding: Encoding) -> EncodedPair:
    length = _prompt_length(whole)
    limit = encoding.max_length
    if limit is not None and encoding.truncation_mode == "keep_start" and length >= limit:
        raise RowFault(
            "prompt_too_long",
            "prompt",
            f"its {length} tokens fill max_length={limit}, so TRL trains on no token of the responses. "
            "Raise max_length (--max-length) or shorten the prompt.",
        )
    prompt = whole.prompt[:length]
    chosen = _truncate(prompt + whole.prompt_chosen[length:], length, encoding, "chosen")
    rejected = _truncate(prompt + whole.prompt_rejected[length:], length, encoding, "rejected")
    return EncodedPair(pair.pair_id, chosen, rejected, _alike(whole) if chosen == rejected else None)


def _alike(whole: _Sequences) -> Alike:
    if whole.prompt_chosen != whole.prompt_rejected:
        return "truncation"
    return "template" if whole.written_alike else "tokenizer"


def _truncate(ids: list[int], prompt_length: int, encoding: Encoding, field: str) -> EncodedResponse:
    cut = 0
    if encoding.max_length is not None and encoding.truncation_mode == "keep_start":
        ids = ids[: encoding.max_length]
    elif encoding.max_length is not None:
        cut = max(0, len(ids) - encoding.max_length)
    start = max(prompt_length, cut)
    if start >= len(ids):
        raise RowFault(
            "no_response_tokens",
            field,
            "the response comes to no token at all. Check the chat template, or drop the row.",
        )
    return EncodedResponse(prompt_ids=ids[cut:start], response_ids=ids[start:])


def _prompt_length(whole: _Sequences) -> int:
    """How many tokens of the prompt come before the responses."""
    if keeps_whole_prompts():
        return len(whole.prompt)
    return min(_shared(whole.prompt, whole.prompt_chosen), _shared(whole.prompt, whole.prompt_rejected))


def _shared(ids: list[int], other: list[int]) -> int:
    """Number of leading tokens in common, as TRL counts them."""
    if other[: len(ids)] == ids:
        return len(ids)
    from trl.data_utils import common_prefix_length

    return common_prefix_length(ids, other)
