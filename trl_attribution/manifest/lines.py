"""JSON-lines files with a header line, read so that every fault names its file, line and field."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from trl_attribution.errors import ManifestError
from trl_attribution.utils.format_version import refuse_newer
from trl_attribution.utils.text import printable

T = TypeVar("T")
_LONGEST_HEADER = 2**26


@dataclass(frozen=True)
class LineFormat:
    """What the first line of such a file must say."""

    name: str
    """The header's ``format``."""
    version: int
    """The newest version that can be read."""
    what: str
    """What messages call the file, such as ``manifest``."""
    hint: str
    """Where such files come from."""

    def lines(self, path: str | Path) -> list[bytes]:
        """All lines of the file, without their ends; only the first where that is no header of this format.

        Raises:
            ManifestError: it cannot be read.
        """
        try:
            with Path(path).open("rb") as handle:
                first = handle.readline(_LONGEST_HEADER)
                # A dataset given by mistake may be larger than memory.
                rest = handle.read() if self._is_header(first) else b""
        except OSError as error:
            raise ManifestError(f"cannot read the {self.what} {path}: {error.strerror or error}") from error
        # Not splitlines: a lone carriage return ends no JSON line.
        lines = (first + rest).split(b"\n")
        return lines if lines[-1] else lines[:-1]

    def header(self, adapter: TypeAdapter[T], lines: list[bytes], path: str | Path) -> T:
        """The checked first line.

        Raises:
            ManifestError: it is no such header, of a newer version, or faulty.
        """
        location = f"{path}:1"
        line = lines[0] if lines else b""
        if not self._is_header(line):
            raise ManifestError(
                f"{location}: this is no {self.what} header. The first line of a {self.what} is a JSON object with "
                f'"format": "{self.name}"; {self.hint}.'
            )
        header = json.loads(line)
        refuse_newer(header.get("version"), self.version, f"{location}: the {self.what}", ManifestError)
        checked = validated(adapter, line, location)
        _check_numbers(header, location)
        return checked

    def begins(self, path: Path) -> bool:
        """Whether the file at ``path`` is of this format; a dataset may end in ``.jsonl`` just as well."""
        with path.open("rb") as handle:
            return self._is_header(handle.readline(_LONGEST_HEADER))

    def _is_header(self, line: bytes) -> bool:
        try:
            header = json.loads(line)
        except (ValueError, RecursionError):
            return False
        return isinstance(header, dict) and header.get("format") == self.name


def entries(adapter: TypeAdapter[T], lines: list[bytes], path: str | Path) -> Iterator[tuple[int, T]]:
    """Every checked line after the header with its number from 1; blank lines are passed over.

    Raises:
        ManifestError: a faulty line, by file, line and field.
    """
    for number, line in enumerate(lines[1:], start=2):
        if line.strip():
            yield number, validated(adapter, line, f"{path}:{number}")


def validated(adapter: TypeAdapter[T], line: bytes, location: str) -> T:
    """One line as what ``adapter`` checks.

    Raises:
        ManifestError: a field is missing, unknown or has a wrong value; the message names it.
    """
    try:
        return adapter.validate_json(line, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        shown = f" (it is {printable(first['input'], 60)})" if field and first["type"] != "missing" else ""
        where = f"field '{printable(field)}': " if field else ""
        raise ManifestError(f"{location}: {where}{first['msg']}{shown}. Mend the line or make the file anew.") from None


def json_line(values: dict[str, Any]) -> str:
    """One line of such a file, with its end."""
    return json.dumps(values, ensure_ascii=False, allow_nan=False) + "\n"


def _check_numbers(header: dict[str, Any], location: str) -> None:
    """JSON has no NaN and no infinity; where any value is allowed, Python's parser lets both through."""
    try:
        json.dumps(header, allow_nan=False)
    except ValueError as error:
        raise ManifestError(
            f"{location}: the header holds a number that is none (NaN or infinite). Mend it or make the file anew."
        ) from error
