"""Kinds of training data that are not read as contrasts, refused by name with the way out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trl_attribution.errors import DataError
from trl_attribution.pairs.formats import LAYOUTS, Form, Reading
from trl_attribution.pairs.images import IMAGE_COLUMNS
from trl_attribution.pairs.rows import RowSource
from trl_attribution.pairs.rows.media import image_modes, is_transformed
from trl_attribution.utils.kinds import EXAMPLES
from trl_attribution.utils.text import printable

if TYPE_CHECKING:
    from trl_attribution.pairs.reader import PairReader

_BESIDE = frozenset(("source", "id", "answer", "solution", "ground_truth", "meta"))
_CHOICE = "Which two are a pair is your choice: write prompt, chosen and rejected, such as the best and the worst by"
_ADVICE: tuple[tuple[frozenset[str], str, str], ...] = (
    (
        frozenset(("instruction", "completions")),
        "several scored completions a prompt, as UltraFeedback has them",
        f"{_CHOICE} overall_score",
    ),
    (
        frozenset(("instruction", "generations")),
        "several rated generations a prompt, as distilabel writes them",
        f"{_CHOICE} ratings (distilabel's FormatTextGenerationDPO does)",
    ),
    (
        frozenset(("prompt", "answers")),
        "several ranked answers a prompt, as Nectar has them",
        f"{_CHOICE} rank",
    ),
    (
        frozenset(("input_ids",)),
        "a tokenized dataset",
        "Token ids are no text: give the dataset that they were made from",
    ),
    (
        frozenset(("prompt_tokens", "response_tokens")),
        "rollouts as token ids, as open-instruct writes them",
        "Decode both columns with the tokenizer that made them, special tokens included, into prompt and completion",
    ),
    (
        frozenset(("prompt", "completions", "labels")),
        "stepwise supervision (PRM)",
        "Make KTO rows of its steps: the steps before as prompt, the step as completion, its label as label",
    ),
    (
        frozenset(("text",)),
        "plain text for language modeling",
        "It has no responses that M0's could be compared with: give it as prompt and completion, or as messages",
    ),
    (
        frozenset(("prompt",)),
        "a prompt-only dataset",
        (
            "What training on prompts teaches is in its rollouts: log them (log_completions=True in GRPOConfig and "
            "RLOOConfig) and give the folder of completions_*.parquet"
        ),
    ),
)


_APART = "Drop the column where the examples do not need it, and audit the others apart: the rows without any."


def refuse_images(source: RowSource, columns: Sequence[str], reading: Reading, form: Form | None) -> None:
    """Refuse images where TRL does not train on them, or they cannot be read.

    Raises:
        DataError: the examples are no preference pairs with a prompt of their own as TRL has them, or a stream's.
    """
    fault = None
    if len(set(IMAGE_COLUMNS) & set(columns)) > 1:
        fault = "are in two columns, image and images, of which TRL reads the first alone. Drop one"
    elif reading.kind != "pair":
        fault = f"are read of preference pairs only, and these are {EXAMPLES[reading.kind]}"
    elif reading.format in LAYOUTS or (form is not None and form.anthropic):
        layout = "anthropic" if form is not None and form.anthropic else reading.format
        fault = f"are read of pairs in TRL's own format only (prompt, chosen, rejected), and this one is {layout}"
    elif form is not None and not form.explicit:
        fault = "need a column 'prompt': TRL splits no prompt off responses where there are images. Add it"
    elif source.kind == "stream":
        fault = "cannot be read of a stream. Give a map-style dataset: Dataset.from_list(list(stream))"
    elif is_transformed(getattr(source, "dataset", None)):
        fault = "of a dataset with a transform are changed while they are read. Store them changed (Dataset.map)"
    elif modes := image_modes(source.features):
        fault = f"are converted while they are read (datasets.Image(mode={modes[0]!r})). Store them converted"
    if fault is not None:
        raise DataError(f"{source.name}: images {fault}. {_APART}")


def refuse_unsupported(name: str, columns: Sequence[str], reading: Reading) -> None:
    """Refuse what is known and cannot be read.

    Raises:
        DataError: the columns are those of such a kind of data, or hold videos or sounds.
    """
    for media in ("video", "videos", "audio", "audios"):
        if media in columns:
            raise DataError(
                f"{name}: column '{media}' makes this a dataset of more than text, and only text and images can be "
                f"audited. {_APART}"
            )
    if reading.format != "auto" or {reading.chosen_column, reading.rejected_column} & set(columns):
        return
    for needed, kind, advice in _ADVICE:
        # A single column means little where others could be the responses under other names.
        if needed <= set(columns) and (len(needed) > 1 or "input_ids" in needed or set(columns) <= needed | _BESIDE):
            shown = printable(", ".join(columns))
            raise DataError(f"{name}: is {kind} (columns: {shown}), which cannot be audited. {advice}.")


def require_pairs(reader: PairReader, verb: str) -> PairReader:
    """Refuse a dataset of other examples than pairs of text, for work that knows these alone.

    Raises:
        DataError: it holds others.
    """
    if reader.has_images:
        raise DataError(f"{reader.source.name}: holds images, and {verb} works on text only. {_APART}")
    if reader.kind != "pair":
        raise DataError(
            f"{reader.source.name}: holds {EXAMPLES[reader.kind]}, and {verb} works on preference pairs only. Audit it "
            "instead, and read the report."
        )
    return reader
