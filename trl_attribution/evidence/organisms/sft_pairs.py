"""Samples of supervised fine-tuning as preference pairs: files that anything which reads pairs can read.

A sample (p, y) becomes the pair (p, y, y0) with y0 drawn from M0 on p. Its pair vector points from what M0 says by
itself to what the sample makes it say. Training on the sample follows the gradient of log M0(y | p); that of
log M0(y0 | p) is zero on average over y0. So taking M0's own response away leaves what the sample teaches as it is on
average, and takes out what every response to p has in common.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from trl_attribution.behaviors import SamplingConfig
from trl_attribution.behaviors.sampling import prompt_ids, responses_to
from trl_attribution.errors import DataError, SettingsError
from trl_attribution.pairs import Reading, RowFault, whole_text
from trl_attribution.pairs.examples import read_example
from trl_attribution.pairs.rows import Row, open_rows

if TYPE_CHECKING:
    from trl_attribution.behaviors.examples import Source
    from trl_attribution.behaviors.judging import OnProgress
    from trl_attribution.models import LoadedModel
    from trl_attribution.pairs import Pair

SPLIT = 0.25
_READ = ("prompt", "completion", "messages", "text")
_WRITTEN = ("chosen", "rejected")


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

    A row is one that an audit reads as an SFT row (of a conversation the last answer counts), or holds ``text``: of
    that the first part, about ``split`` of its characters up to the end of a word, is the prompt that M0 continues.

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
    samples = [(row, _sample(row, split)) for row in open_rows(source)]
    if not samples:
        raise DataError("there are no samples in this dataset")
    asked = [
        prompt_ids(loaded, one.prompt, one.location, "text" if isinstance(one.prompt, str) else "auto")
        for _, one in samples
    ]
    rows: list[dict[str, Any]] = []
    left_out: Counter[str] = Counter()
    for (row, one), (response,) in zip(samples, responses_to(loaded, asked, sampling, on_progress), strict=True):
        if not response.strip():
            left_out["empty_response"] += 1
        elif response.strip() == whole_text(one.chosen).strip():
            left_out["same_response"] += 1
        else:
            rows.append(_row(row, one, response))
    return SamplePairs(rows, dict(left_out))


def _row(row: Row, sample: Pair, response: str) -> dict[str, Any]:
    rejected: Any = response
    if isinstance(sample.chosen, list):
        rejected = [{"role": "assistant", "content": response}]
    elif sample.chosen[0].isspace() and not response[0].isspace():
        # Some tokenizers lose the space before the first word of what they decode.
        rejected = f" {response}"
    others = {name: value for name, value in row.values.items() if name not in (*_READ, *_WRITTEN)}
    return {"prompt": sample.prompt, "chosen": sample.chosen, "rejected": rejected, **others}


def _sample(row: Row, split: float) -> Pair:
    taken = [name for name in _WRITTEN if row.values.get(name) is not None]
    if taken:
        raise DataError(
            f"{row.location}: has a field `{taken[0]}` of its own, which the pair's would replace. Rename it, or audit "
            "the dataset as it is, if it holds preference pairs."
        )
    try:
        found = read_example(replace(row, values=_with_prompt(row.values, split)), Reading(format="sft"), None, "all")
    except RowFault as fault:
        raise DataError(f"{row.location}: column '{fault.field}' {fault.detail}") from fault
    if isinstance(found.chosen, list) and len(found.chosen) > 1:
        raise DataError(
            f"{row.location}: the completion has {len(found.chosen)} messages, and M0 gives one response. Put all but "
            "the last into the prompt."
        )
    if not found.prompt:
        raise DataError(f"{row.location}: the prompt is empty; M0 cannot be asked")
    return found


def _with_prompt(values: Mapping[str, Any], split: float) -> dict[str, Any]:
    """A row of ``text`` as prompt and completion; any other as it is."""
    given = {name: value for name, value in values.items() if value is not None}
    text = given.get("text")
    if not isinstance(text, str) or "messages" in given or {"prompt", "completion"} <= given.keys():
        return given
    bare = text.strip()
    place = min(_word_ends(bare), key=lambda end: abs(end - split * len(bare)), default=0)
    return {"prompt": bare[:place], "completion": bare[place:]}


def _word_ends(text: str) -> Iterable[int]:
    return [place for place in range(1, len(text)) if text[place].isspace() and not text[place - 1].isspace()]
