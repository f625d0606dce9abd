"""JSON files of this package: what is none of its kind, newer or broken is refused by name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from trl_attribution.errors import AttributionError, StoreError
from trl_attribution.utils.atomic import atomic_path, write_json
from trl_attribution.utils.format_version import check_format_version
from trl_attribution.utils.text import printable

T = TypeVar("T")


class JsonFile(BaseModel):
    """A kind of JSON file, declared by its fields.

    What is written is what was given: a field that was left out is not in the file. What is read may hold fields of
    other releases; they are passed over.
    """

    model_config = ConfigDict(frozen=True)

    FORMAT: ClassVar[str]
    """What ``format`` has to be, such as ``trl-attribution audit``."""
    VERSION: ClassVar[int] = 1
    """The newest ``format_version`` that is read, and the one that is written."""
    ADVICE: ClassVar[str]
    """What to do where a file is no good, a sentence."""
    ERROR: ClassVar[type[AttributionError]] = StoreError

    def write(self, path: Path) -> None:
        """Write the file, atomically."""
        write_json(path, {"format": self.FORMAT, "format_version": self.VERSION, **self.model_dump(exclude_unset=True)})

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """The file at ``path``, None where there is none.

        Raises:
            AttributionError: it cannot be read, is of another format or a newer version, or a field is missing or
                wrong; the message names it.
        """
        values = cls.header(path)
        if values is None:
            return None
        try:
            return cls.model_validate(values)
        except (ValidationError, AttributionError) as error:
            raise cls.ERROR(f"{printable(path)} is broken: {_fault(error)}. {cls.ADVICE}") from error

    @classmethod
    def header(cls, path: Path) -> dict[str, Any] | None:
        """All values in the file at ``path``, of which only format and version are checked; None where there is none.

        Raises:
            AttributionError: it cannot be read, is of another format or a newer version.
        """
        try:
            return read_json(path, cls.FORMAT, cls.VERSION, cls.ERROR, cls.ADVICE)
        except AttributionError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise


def read_json(
    path: str | Path, expected: str, newest: int, error: type[AttributionError] = StoreError, advice: str = ""
) -> dict[str, Any]:
    """The object in the file ``path``.

    Args:
        path: the file.
        expected: what its ``format`` has to be, such as ``trl-attribution drift``.
        newest: the newest ``format_version`` (in a verdict, ``version``) that is read.
        error: class of the error.
        advice: what to do where the file is no good, a sentence.

    Raises:
        AttributionError: it cannot be read, is of another format, or of a newer version.
    """
    where = printable(path)
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as fault:
        raise error(f"cannot read {where}: {printable(fault, 120)}. {advice}".rstrip()) from fault
    return checked_json(values, expected, newest, where, error, advice)


def checked_json(
    values: object, expected: str, newest: int, where: str, error: type[AttributionError] = StoreError, advice: str = ""
) -> dict[str, Any]:
    """``values``, once it is sure that they are of the ``expected`` format; ``where`` they are begins the message.

    Raises:
        AttributionError: as for :func:`read_json`.
    """
    if not isinstance(values, dict) or values.get("format") != expected:
        kind = expected.removeprefix("trl-attribution ")
        raise error(f"{where} holds no {kind}: its `format` is not {expected!r}. {advice}".rstrip())
    check_format_version(values.get("format_version", values.get("version")), newest, where, error)
    return values


@dataclass(frozen=True)
class Described:
    """A payload and what its JSON file says of it."""

    values: dict[str, Any]
    payload: bytes


@dataclass(frozen=True)
class DescribedFile:
    """A file of payload and a JSON file with its checksum, written last: whether the two belong together is checked."""

    description: Path
    payload: Path
    expected: str
    """The description's ``format``."""
    newest: int
    """Its newest ``format_version``, which is written."""
    advice: str
    """As for :func:`read_json`."""
    checksum: str = "payload_sha256"
    """The description's key for the SHA-256 of the payload."""
    error: type[AttributionError] = StoreError
    """Of what is wrong with one of them."""

    def save(self, values: Mapping[str, Any], payload: bytes) -> None:
        """Write both, each whole or not at all.

        Raises:
            AttributionError: a file cannot be written.
        """
        with atomic_path(self.payload) as part:
            part.write_bytes(payload)
        header = {"format": self.expected, "format_version": self.newest}
        write_json(self.description, {**header, **values, self.checksum: hashlib.sha256(payload).hexdigest()})

    def load(self) -> Described:
        """Read both.

        Raises:
            AttributionError: one is missing or cannot be read, or they do not belong together.
        """
        values = read_json(self.description, self.expected, self.newest, self.error, self.advice)
        try:
            payload = self.payload.read_bytes()
        except OSError as error:
            raise self.error(f"cannot read {printable(self.payload)}: {printable(error)}. {self.advice}") from error
        if hashlib.sha256(payload).hexdigest() != values.get(self.checksum):
            raise self.error(
                f"{printable(self.payload)} is damaged or does not belong to {self.description.name}. {self.advice}"
            )
        return Described(values, payload)


def validated(
    kind: TypeAdapter[T], values: object, where: object, error: type[AttributionError] = StoreError, advice: str = ""
) -> T:
    """``values``, found at ``where``, as the type that the file's format is declared by.

    Raises:
        AttributionError: a value is missing or of another type; the message names it.
    """
    try:
        return kind.validate_python(values)
    except ValidationError as faults:
        raise error(f"{where} is broken ({_fault(faults)}). {advice}".rstrip()) from None


def _fault(error: ValidationError | AttributionError) -> str:
    if isinstance(error, AttributionError):  # of a field that checks itself
        return printable(error, 300)
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    return f"field '{printable(field)}': {printable(first['msg'], 200)}"
