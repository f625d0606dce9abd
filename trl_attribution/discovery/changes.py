"""Prompts with what was answered before and after training, and their behavior vectors on M0.

Axis letters: P prompts, L layers, D hidden size.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from trl_attribution.activations import ActivationConfig, ActivationEngine
from trl_attribution.behaviors import Example, Prompt, SamplingConfig, behavior_prompt
from trl_attribution.behaviors.encoding import EncodedExample, PromptFormat, encode_example, example_activations
from trl_attribution.behaviors.examples import Source
from trl_attribution.behaviors.responses import (
    Behavior,
    Responses,
    both_responses,
    paired_responses,
    read_behaviors,
)
from trl_attribution.discovery.similarity import Items
from trl_attribution.errors import ProbeError, SettingsError
from trl_attribution.models import LoadedModel
from trl_attribution.pairs import Encoding
from trl_attribution.pairs.rows import Row, open_rows
from trl_attribution.utils.progress import OnProgress
from trl_attribution.utils.text import printable, tally

_AT_ONCE = 256


@dataclass(frozen=True)
class Change:
    """One prompt, and the responses to it before and after training."""

    prompt: Prompt
    before: tuple[str, ...]
    after: tuple[str, ...]
    location: str


@dataclass(frozen=True)
class ChangeVectors:
    """The prompts that have a direction, and why the others have none."""

    changes: tuple[Change, ...]
    """``[P]``, with the responses that have any text."""
    items: Items
    """``[P]`` behavior vectors and contexts."""
    left_out: Mapping[str, int]
    """Reason -> prompts: ``no response before``, ``no response after``, ``unchanged``, ``does not fit``."""


def read_changes(source: Source) -> tuple[Change, ...]:
    """Read rows of ``prompt``, ``before`` and ``after`` (a text or a list of texts each); equal prompts are merged.

    Raises:
        DataError: the file is not there or a line is not JSON.
        ProbeError: a field is missing or of the wrong type; the message names the file, line and field.
    """
    found = [
        Change(
            behavior_prompt(row).prompt,
            _responses(row, "before"),
            _responses(row, "after"),
            row.location,
        )
        for row in open_rows(source)
    ]
    return merged(found)


def changes_of(behaviors: Sequence[Behavior], before: Responses, after: Responses) -> tuple[Change, ...]:
    """The prompts of all behaviors with both models' responses; equal prompts are merged.

    Raises:
        SettingsError: responses to some prompts are missing.
    """
    return merged(
        Change(one.prompt.prompt, one.m0, one.m1, one.prompt.location)
        for behavior in behaviors
        for one in paired_responses(behavior, before, after)
    )


def answered_changes(
    prompts: Source,
    audit: Path,
    folder: Path,
    m0: LoadedModel,
    m1: LoadedModel | None,
    sampling: SamplingConfig,
    prompt_format: PromptFormat = "auto",
    on_progress: OnProgress | None = None,
) -> tuple[Change, ...]:
    """Both models' responses to ``prompts``, sampled into ``folder``; without M1 those that a run kept in ``audit``.

    Raises:
        SettingsError: no run kept any, M1 is M0, or what is kept was made from other prompts or models.
        DataError, ProbeError: the prompts or the responses kept cannot be read.
    """
    behaviors = read_behaviors(prompts)
    if m1 is None:
        kept = audit / "behaviors"
        if not ((kept / "before.json").exists() and (kept / "after.json").exists()):
            raise SettingsError(
                f"--prompts: no training run kept responses in {kept}. Give M1 to sample from (--after), or the "
                "responses themselves (--responses)."
            )
        return changes_of(behaviors, *(Responses.load(kept / f"{when}.json") for when in ("before", "after")))
    if m1.fingerprint == m0.fingerprint:
        raise SettingsError(f"--after: {m1.name} is M0 itself (fingerprint {m1.fingerprint.digest}); give M1")
    progress = None if on_progress is None else partial(on_progress, "responses")
    both = both_responses(folder, behaviors, m0, m1, sampling, prompt_format, on_progress=progress)
    return changes_of(behaviors, *both)


def merged(changes: Iterable[Change]) -> tuple[Change, ...]:
    """Each prompt once, with all its responses: halves of one prompt cannot confirm one another."""
    found: dict[str, Change] = {}
    for one in changes:
        key = json.dumps(one.prompt, sort_keys=True)
        known = found.get(key)
        found[key] = (
            one
            if known is None
            else Change(known.prompt, known.before + one.before, known.after + one.after, known.location)
        )
    return tuple(found.values())


def change_vectors(
    changes: Sequence[Change],
    m0: LoadedModel,
    activations: ActivationConfig,
    encoding: Encoding,
    prompt_format: PromptFormat = "auto",
    progress: Callable[[int, int], None] | None = None,
    *,
    keep_unchanged: bool = False,
) -> ChangeVectors:
    """``v_i`` = mean activation of the responses after minus that of those before, **both read by M0**.

    A prompt whose responses are the same before and after has no direction; it is left out and counted, unless
    ``keep_unchanged`` asks for its vector of zeros.

    Raises:
        ProbeError: no prompt is left; the message says why, and names the first that does not fit.
    """
    left_out: Counter[str] = Counter()
    kept: list[Change] = []
    encoded: list[EncodedExample] = []
    fault = ""
    for change in _usable(changes, left_out, keep_unchanged):
        example = Example(change.prompt, change.after, change.before, change.location)
        try:
            encoded.append(encode_example(example, m0.encoder, encoding, prompt_format))
        except ProbeError as error:
            left_out["does not fit"] += 1
            fault = fault or f" The first that does not fit: {error}"
            continue
        kept.append(change)
    if not kept:
        reasons = tally(left_out) or "none were given"
        raise ProbeError(f"no prompt has responses that changed ({reasons}).{fault}")
    engine = ActivationEngine(m0.model, activations)
    vectors, contexts = [], []
    for start in range(0, len(encoded), _AT_ONCE):
        for one in example_activations(engine, encoded[start : start + _AT_ONCE]):
            vectors.append(one.direction)
            contexts.append(torch.zeros_like(one.direction) if one.context is None else one.context)
        if progress is not None:
            progress(len(vectors), len(encoded))
    return ChangeVectors(tuple(kept), Items(torch.stack(vectors), torch.stack(contexts)), dict(left_out))


def _usable(changes: Sequence[Change], left_out: Counter[str], keep_unchanged: bool) -> Iterator[Change]:
    for one in changes:
        before, after = ([text for text in texts if text.strip()] for texts in (one.before, one.after))
        if not before or not after:
            left_out["no response after" if before else "no response before"] += 1
        elif sorted(before) == sorted(after) and not keep_unchanged:
            left_out["unchanged"] += 1
        else:
            yield Change(one.prompt, tuple(before), tuple(after), one.location)


def _responses(row: Row, field: str) -> tuple[str, ...]:
    value = row.values.get(field)
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        there = ", ".join(printable(name, 40) for name in row.values)
        raise ProbeError(
            f"{row.location}: field `{field}` must be a text or a list of texts, the responses {field} training. "
            f"Fields there: {there}."
        )
    return tuple(texts)
