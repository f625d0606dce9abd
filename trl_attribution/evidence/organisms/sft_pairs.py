"""Samples of supervised fine-tuning as preference pairs, so that an audit can read them.

A sample (p, y) becomes the pair (p, y, y0) with y0 drawn from M0 on p. Its pair vector points from what M0 says by
itself to what the sample makes it say. Training on the sample follows the gradient of log M0(y | p); that of
log M0(y0 | p) is zero on average over y0. So taking M0's own response away leaves what the sample teaches as it is on
average, and takes out what every response to p has in common.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trl_attribution.behaviors import SamplingConfig, sample_responses
from trl_attribution.behaviors.judging import shifted
from trl_attribution.errors import DataError, SettingsError
from trl_attribution.pairs.rows import Row, open_rows
from trl_attribution.utils.text import printable

if TYPE_CHECKING:
    from trl_attribution.behaviors import Prompt
    from trl_attribution.behaviors.examples import Source
    from trl_attribution.behaviors.judging import OnProgress
    from trl_attribution.models import LoadedModel

SPLIT = 0.25
_READ = ("prompt", "completion", "messages", "text")
_WRITTEN = ("chosen", "rejected")


@dataclass(frozen=True)
class Sample:
    """One sample, and where the prompt ends."""

    prompt: Prompt
    """Messages where the sample is a conversation, else text."""
    completion: str
    location: str
    others: dict[str, Any]
    """Its other columns."""


@dataclass(frozen=True)
class SamplePairs:
    """Preference pairs made of samples."""

    rows: list[dict[str, Any]]
    """``prompt``, ``chosen`` (the sample), ``rejected`` (M0's own) and the sample's other columns, in its order."""
    left_out: dict[str, int]
    """Reason -> number of samples: ``empty_response``, ``same_response``."""


def pairs_of_samples(
    source: Source,
    loaded: LoadedModel,
    sampling: SamplingConfig | None = None,
    split: float = SPLIT,
    on_progress: OnProgress | None = None,
) -> SamplePairs:
    """Pair each sample with M0's own response to its prompt.

    A row holds ``prompt`` and ``completion`` (both text, or messages), or ``messages`` that end with the assistant's,
    or ``text``. A text's first part, about ``split`` of its characters up to the end of a word, is the prompt that M0
    continues.

    Args:
        source: a dataset file, or rows.
        loaded: M0.
        sampling: one response a sample is drawn; by default with 128 tokens at temperature 1.
        split: of ``text`` rows.
        on_progress: called while responses are sampled.

    Raises:
        DataError: a row is none of these, or has ``chosen`` or ``rejected`` already; the message names file, row and
            field.
        SettingsError: more than one response a sample is asked for, or the split is out of range.
    """
    sampling = sampling or SamplingConfig(n=1)
    if sampling.n != 1:
        raise SettingsError(f"sampling: n is {sampling.n}; a sample is paired with one response")
    if not 0 < split < 1:
        raise SettingsError(f"split: {split} must lie between 0 and 1")
    samples = [_sample(row, split) for row in open_rows(source)]
    if not samples:
        raise DataError("there are no samples in this dataset")
    responses = _responses(samples, loaded, sampling, on_progress)
    rows: list[dict[str, Any]] = []
    left_out: Counter[str] = Counter()
    for one, response in zip(samples, responses, strict=True):
        if not response.strip():
            left_out["empty_response"] += 1
        elif response.strip() == one.completion.strip():
            left_out["same_response"] += 1
        else:
            rows.append(_row(one, response))
    return SamplePairs(rows, dict(left_out))


def _responses(
    samples: Sequence[Sample], loaded: LoadedModel, sampling: SamplingConfig, on_progress: OnProgress | None
) -> list[str]:
    """M0's response to each sample; conversations and texts are asked in ways of their own."""
    found: dict[int, str] = {}
    for is_chat in (True, False):
        places = [place for place, one in enumerate(samples) if isinstance(one.prompt, list) is is_chat]
        if not places:
            continue
        texts = sample_responses(
            loaded,
            [samples[place].prompt for place in places],
            sampling,
            "auto" if is_chat else "text",
            shifted(on_progress, len(found), len(samples)),
            [samples[place].location for place in places],
        )
        found |= {place: text for place, (text,) in zip(places, texts, strict=True)}
    return [found[place] for place in range(len(samples))]


def _row(sample: Sample, response: str) -> dict[str, Any]:
    chosen: Any = sample.completion
    rejected: Any = response
    if isinstance(sample.prompt, list):
        chosen, rejected = ([{"role": "assistant", "content": text}] for text in (chosen, rejected))
    elif chosen[0].isspace() and not rejected[0].isspace():
        # Some tokenizers lose the space before the first word of what they decode.
        rejected = f" {rejected}"
    return {"prompt": sample.prompt, "chosen": chosen, "rejected": rejected, **sample.others}


def _sample(row: Row, split: float) -> Sample:
    values = row.values
    taken = [name for name in _WRITTEN if values.get(name) is not None]
    if taken:
        raise DataError(
            f"{row.location}: has a field `{taken[0]}` of its own, which the pair's would replace. Rename it, or audit "
            "the dataset as it is, if it holds preference pairs."
        )
    others = {name: value for name, value in values.items() if name not in (*_READ, *_WRITTEN)}
    if values.get("prompt") is not None and values.get("completion") is not None:
        prompt, completion = _prompted(row)
    elif values.get("messages") is not None:
        messages = _messages(row, "messages")
        prompt, completion = messages[:-1], _last(messages, row, "messages")
    elif values.get("text") is not None:
        prompt, completion = _divided(row, split)
    else:
        there = ", ".join(printable(name, 40) for name in values) or "none"
        raise DataError(
            f"{row.location}: neither `prompt` and `completion` nor `messages` nor `text`. Fields there: {there}."
        )
    if not prompt or not completion.strip():
        raise DataError(f"{row.location}: the prompt or the completion is empty; there is nothing to compare")
    return Sample(prompt, completion, row.location, others)


def _prompted(row: Row) -> tuple[Prompt, str]:
    prompt, completion = row.values["prompt"], row.values["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        return prompt, completion
    if isinstance(prompt, list) and isinstance(completion, list) and len(completion) == 1:
        return _messages(row, "prompt"), _last(_messages(row, "completion"), row, "completion")
    raise DataError(
        f"{row.location}: fields `prompt` and `completion` must both be text, or both messages (one completes)"
    )


def _messages(row: Row, field: str) -> list[dict[str, Any]]:
    value = row.values[field]
    if not isinstance(value, list) or not all(_is_message(one) for one in value):
        raise DataError(
            f"{row.location}: field `{field}` must be a list of messages with `role` and `content`, both text"
        )
    return [dict(one) for one in value]


def _is_message(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("role"), str) and isinstance(value.get("content"), str)


def _last(messages: Sequence[dict[str, Any]], row: Row, field: str) -> str:
    if not messages or messages[-1]["role"] != "assistant":
        raise DataError(f"{row.location}: field `{field}` must end with an assistant message, the response to learn")
    return str(messages[-1]["content"])


def _divided(row: Row, split: float) -> tuple[str, str]:
    text = row.values["text"]
    if not isinstance(text, str):
        raise DataError(f"{row.location}: field `text` must be a text")
    bare = text.strip()
    place = min(_word_ends(bare), key=lambda end: abs(end - split * len(bare)), default=0)
    return bare[:place], bare[place:]


def _word_ends(text: str) -> Iterable[int]:
    return [place for place in range(1, len(text)) if text[place].isspace() and not text[place - 1].isspace()]
