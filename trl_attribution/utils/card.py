"""A section of ours in a dataset's or model's card, which is its owner's: put in, replaced and taken out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trl_attribution.errors import DataError
from trl_attribution.utils.atomic import atomic_path
from trl_attribution.utils.paths import local_path
from trl_attribution.utils.text import is_hub_id, printable

CARD = "README.md"
_FILES = {".jsonl", ".json", ".csv", ".parquet", ".arrow", ".gguf", ".gz", ".zst"}


@dataclass(frozen=True)
class Section:
    """Markdown between two comments, by which it is found again."""

    about: str
    """What the comments say: ``audit``, and a digest."""
    lines: Sequence[str]
    """None takes an earlier one out."""

    @property
    def text(self) -> str:
        """The section with its marks; nothing without lines."""
        return "\n".join((self._mark("begin"), *self.lines, "", self._mark("end"))) if self.lines else ""

    def within(self, card: str) -> str:
        """``card`` with the section in the place of an earlier one, else at the end."""
        start, stop = self._place_in(card)
        before, after = card[:start].rstrip("\n"), card[stop:].strip("\n")
        return "\n\n".join(part for part in (before, self.text, after) if part) + "\n"

    def write(self, path: Path, card: str) -> None:
        """Write ``card`` with the section to ``path``.

        Raises:
            AttributionError: it cannot be written; what was there stays.
        """
        with atomic_path(path) as part:
            part.write_bytes(self.within(card).encode("utf-8"))

    def _mark(self, which: str) -> str:
        return f"<!-- trl-attribution {self.about} {which} -->"

    def _place_in(self, card: str) -> tuple[int, int]:
        """Where the section stands, or the end of the card; a mark without its other half is not ours."""
        begin, end = self._mark("begin"), self._mark("end")
        place = 0
        while (stop := card.find(end, place)) >= 0:
            start = card.rfind(begin, place, stop)
            place = stop + len(end)
            if start >= 0:
                return start, place
        return len(card), len(card)


def read_card(path: Path, new: str) -> str:
    """The card at ``path`` with its own line ends; ``new`` where there is none.

    Raises:
        DataError: it cannot be read as text.
    """
    if not path.exists():
        return new
    try:
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise no_card(path, error) from error


def no_card(path: Path, fault: object) -> DataError:
    """That nothing can be added to the card."""
    return DataError(
        f"cannot add to the card {printable(path, 400)}: {printable(fault)}. Mend or remove it; `apply` writes "
        "none with --no-card."
    )


def hub_name(name: object) -> str | None:
    """``name`` if it is a Hub id; None of what is only a path here."""
    text = str(name)
    local = "/" not in text or Path(text).suffix.lower() in _FILES or local_path(text).exists()
    return text if is_hub_id(text) and not local else None


def shown_name(name: object) -> str:
    """A Hub id, or the last part of a path: where it lies on this machine is nobody's business."""
    return hub_name(name) or Path(str(name)).name or str(name)
