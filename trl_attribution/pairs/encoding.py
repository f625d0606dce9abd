"""Token ids of a pair, the very ones that TRL's DPOTrainer and its collator would train on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trl_attribution.errors import ModelError, SettingsError
from trl_attribution.pairs.faults import RowFault
from trl_attribution.pairs.formats import Pair
from trl_attribution.utils.text import printable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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


@dataclass(frozen=True, slots=True)
class EncodedResponse:
    """Token ids of one response and its prompt, after truncation."""

    prompt_ids: list[int]
    response_ids: list[int]


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """Token ids of a pair. With ``keep_end`` the two prompts can differ: each sequence is cut by itself."""

    pair_id: str
    chosen: EncodedResponse
    rejected: EncodedResponse


def encode_pair(pair: Pair, tokenizer: PreTrainedTokenizerBase, encoding: Encoding) -> EncodedPair:
    """Tokenize a pair exactly as ``DPOTrainer`` (TRL 1.16) does: same template, EOS, prompt split and truncation.

    Raises:
        RowFault: TRL would drop the pair (``prompt_too_long``), its chat template refuses it (``template_error``), or
            no token of a response is left (``no_response_tokens``).
        ModelError: the tokenizer lacks a chat template or an EOS token that the pair needs.
    """
    (result,) = encode_pairs([pair], tokenizer, encoding)
    if isinstance(result, RowFault):
        raise result
    return result


def encode_pairs(
    pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase, encoding: Encoding
) -> list[EncodedPair | RowFault]:
    """``encode_pair`` for many in one tokenizer call, which fast tokenizers spread over the cores.

    Returns:
        For each pair, in order, its tokens or the fault that keeps it out.

    Raises:
        ModelError: as for ``encode_pair``.
    """
    outcomes: dict[int, _Sequences | RowFault] = {}
    rendered: dict[int, list[str]] = {}
    for place, pair in enumerate(pairs):
        try:
            if _TOKENIZER_OPTIONS.isdisjoint(pair.chat_template_kwargs):
                rendered[place] = _render(pair, tokenizer)
            else:
                outcomes[place] = _sequences(_apply_template(pair, tokenizer, tokenize=True))
        except RowFault as fault:
            outcomes[place] = fault
    for conversational in (True, False):
        places = [place for place in rendered if pairs[place].conversational is conversational]
        texts = [text for place in places for text in rendered[place]]
        # The template has written the special tokens of a conversation already.
        ids = _tokenize(texts, tokenizer, add_special_tokens=not conversational)
        outcomes.update((place, _sequences(ids[3 * n : 3 * n + 3])) for n, place in enumerate(places))
    return [_finished(pair, outcomes[place], encoding) for place, pair in enumerate(pairs)]


@dataclass(frozen=True, slots=True)
class _Sequences:
    """Whole token sequences of a pair."""

    prompt: list[int]
    prompt_chosen: list[int]
    prompt_rejected: list[int]


def _sequences(ids: Sequence[list[int]]) -> _Sequences:
    prompt, prompt_chosen, prompt_rejected = ids
    return _Sequences(prompt, prompt_chosen, prompt_rejected)


def _render(pair: Pair, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The three texts to tokenize: prompt, prompt + chosen, prompt + rejected."""
    if isinstance(pair.prompt, list):
        return _apply_template(pair, tokenizer, tokenize=False)
    eos = tokenizer.eos_token
    if eos is None:
        raise ModelError(
            "the tokenizer has no EOS token, which TRL appends to every response. Set tokenizer.eos_token."
        )
    responses = (text if text.endswith(eos) else text + eos for text in (str(pair.chosen), str(pair.rejected)))
    return [pair.prompt, *(pair.prompt + response for response in responses)]


def _apply_template(pair: Pair, tokenizer: PreTrainedTokenizerBase, tokenize: bool) -> list[Any]:
    import jinja2

    if not tokenizer.chat_template:
        raise ModelError(
            "the tokenizer has no chat template, but the dataset holds messages. Use the model's instruct or SFT "
            "checkpoint, or set tokenizer.chat_template."
        )
    options: dict[str, Any] = {"tools": pair.tools, **pair.chat_template_kwargs}
    prompt: Any = pair.prompt
    try:
        alone: Any = tokenizer.apply_chat_template(
            [prompt], tokenize=tokenize, return_dict=tokenize, add_generation_prompt=True, **options
        )
        full: Any = tokenizer.apply_chat_template(
            [prompt + pair.chosen, prompt + pair.rejected], tokenize=tokenize, return_dict=tokenize, **options
        )
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        raise RowFault(
            "template_error",
            "messages",
            f"the model's chat template refuses them ({printable(error)}). Reorder or merge the messages to suit it.",
        ) from error
    return [*alone["input_ids"], *full["input_ids"]] if tokenize else [*alone, *full]


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
    length = min(_shared(whole.prompt, whole.prompt_chosen), _shared(whole.prompt, whole.prompt_rejected))
    limit = encoding.max_length
    if limit is not None and encoding.truncation_mode == "keep_start" and length >= limit:
        raise RowFault(
            "prompt_too_long",
            "prompt",
            f"its {length} tokens fill max_length={limit}, so TRL drops the pair. "
            "Raise max_length or shorten the prompt.",
        )
    return EncodedPair(
        pair_id=pair.pair_id,
        chosen=_truncate(whole.prompt_chosen, length, encoding, "chosen"),
        rejected=_truncate(whole.prompt_rejected, length, encoding, "rejected"),
    )


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


def _shared(ids: list[int], other: list[int]) -> int:
    """Number of leading tokens in common, as TRL counts them."""
    if other[: len(ids)] == ids:
        return len(ids)
    from trl.data_utils import common_prefix_length

    return common_prefix_length(ids, other)
