"""Two values of a JSON line exchanged byte for byte, so that exchanging them again gives the line back."""

from __future__ import annotations

import json
import re

_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


def swap_values(line: bytes, first: str, second: str) -> bytes:
    r"""``line`` with the values of two of its keys exchanged; spacing, escapes, key order and newline stay.

    The line must be one JSON object that holds both keys. Of a key that comes twice the last value counts, as it
    does to ``json.loads``.

    >>> swap_values(b'{"a": [1],  "b":"\\u00e9"}\n', "a", "b")
    b'{"a": "\\u00e9",  "b":[1]}\n'
    """
    text = line.decode("utf-8")
    spans = _value_spans(text)
    (start, end), (later_start, later_end) = sorted((spans[first], spans[second]))
    swapped = [text[:start], text[later_start:later_end], text[end:later_start], text[start:end], text[later_end:]]
    return "".join(swapped).encode("utf-8")


def _value_spans(text: str) -> dict[str, tuple[int, int]]:
    """Where in ``text`` the value of each top-level key starts and ends."""
    spans: dict[str, tuple[int, int]] = {}
    place = _skip(text, text.index("{") + 1)
    while text[place] != "}":
        key, place = _DECODER.raw_decode(text, place)
        start = _skip(text, _skip(text, place) + 1)  # past the colon
        _, end = _DECODER.raw_decode(text, start)
        spans[key] = (start, end)
        place = _skip(text, end)
        if text[place] == ",":
            place = _skip(text, place + 1)
    return spans


def _skip(text: str, place: int) -> int:
    match = _SPACE.match(text, place)
    return match.end() if match else place
