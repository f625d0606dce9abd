"""The verdict as one JSON document that reads back to the same verdict and harms no page or log it is put in."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from trl_attribution.gate.formats.neutral import SENTENCE_LIMIT
from trl_attribution.gate.verdict import Verdict

# JSON may write any character of a string as an escape, so these change no value: HTML, and the commands of CI runners.
_ESCAPES = {"<": r"\u003c", ">": r"\u003e", "&": r"\u0026", "::": r":\u003a"}
_BRACKET_COMMAND = re.compile(r"##(?=[\w-]*\[)")
_UNORDERED = ("skipped", "probe_fingerprints")


def render_json(verdict: Verdict) -> str:
    """The whole verdict; :meth:`Verdict.from_json` reads it back."""
    values = verdict.to_json()
    for name in _UNORDERED:
        values[name] = dict(sorted(values[name].items()))
    return dump(values)


def dump(document: Any) -> str:
    """Indented ASCII JSON with a final newline, inert in HTML and in CI logs; long texts cut, NaN and infinity null."""
    text = json.dumps(_bounded(document), indent=2, ensure_ascii=True, allow_nan=False) + "\n"
    for sign, escape in _ESCAPES.items():
        text = text.replace(sign, escape)
    return _BRACKET_COMMAND.sub(r"#\\u0023", text)


def _bounded(value: Any) -> Any:
    if isinstance(value, str):
        return value if len(value) <= SENTENCE_LIMIT else value[:SENTENCE_LIMIT] + "…"
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {_bounded(str(key)): _bounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_bounded(inner) for inner in value]
    return value
