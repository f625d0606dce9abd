"""Whether a dataset is what a manifest makes of another, and where it first is not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl_attribution.errors import ManifestError
from trl_attribution.manifest.applying import make_plan, planned_rows
from trl_attribution.manifest.config import ApplyOptions
from trl_attribution.manifest.files import FolderFiles, files_of
from trl_attribution.manifest.tally import ApplyReport
from trl_attribution.pairs import Reading
from trl_attribution.pairs.rows import OpenDataset, Row, RowSource, open_dataset
from trl_attribution.pairs.rows.files import FolderRows
from trl_attribution.pairs.rows.opening import is_saved_dataset
from trl_attribution.pairs.rows.typed import holds, same
from trl_attribution.utils.card import CARD
from trl_attribution.utils.paths import local_path
from trl_attribution.utils.text import printable

if TYPE_CHECKING:
    from trl_attribution.manifest.manifest import Manifest

_SHOWN = 60
_BLOCK = 2**20


def check_applied(
    manifest: Manifest, source: str | Path, cleaned: str | Path, reading: Reading, options: ApplyOptions
) -> ApplyReport:
    """What applying ``manifest`` to ``source`` does, once ``cleaned`` turned out to be its result.

    Rows are compared one by one, values by value and type; a column that a row lacks equals an empty one, since typed
    formats cannot tell the two apart. Of a folder, the files that no decision touches have to be equal byte for byte,
    and of a dataset with several splits all other splits row by row. Dataset cards are not compared.

    Raises:
        ManifestError: it is not; the message names the first difference by row and column.
        DataError: either cannot be read.
    """
    opened = open_dataset(source, reading.split)
    result = open_dataset(cleaned, _split_of(cleaned, opened, reading))
    plan = make_plan(manifest, opened.source, reading, options)
    as_text = result.source.kind == "csv" and opened.source.kind != "csv"
    _compare(planned_rows(plan), result.source, as_text)
    if result.split is not None:
        _compare_names("split", set(opened.others), set(result.others), str(cleaned))
        for name, rows in opened.others.items():
            _compare(iter(rows), result.others[name], as_text=False)
    if isinstance(opened.source, FolderRows) and isinstance(result.source, FolderRows):
        _compare_folders(opened.source, local_path(source), local_path(cleaned))
    return plan.report


def _split_of(cleaned: str | Path, opened: OpenDataset, reading: Reading) -> str | None:
    """Which split to ask the result for: none where it may have been written as a single file or dataset."""
    path = local_path(cleaned)
    if isinstance(opened.source, FolderRows):
        return reading.split if path.is_dir() and not is_saved_dataset(path) else None
    return opened.split if not path.exists() or (path / "dataset_dict.json").exists() else None


def _compare(expected: Iterator[Row], actual: RowSource, as_text: bool) -> None:
    name = printable(actual.name, 400)
    for number, (wanted, found) in enumerate(zip_longest(expected, actual)):
        if wanted is None:
            raise ManifestError(
                f"{found.location}: row {number} is not in what the manifest makes of the input, which has {number} "
                "rows. Apply the manifest again."
            )
        if found is None:
            raise ManifestError(
                f"{name}: ends after {number} rows, where the manifest leaves more: the next is {wanted.location}. "
                "Apply the manifest again."
            )
        _compare_rows(wanted, found, number, as_text)


def _compare_rows(wanted: Row, found: Row, number: int, as_text: bool) -> None:
    # What was written as text is compared as text has it: types would depend on the rows that are left.
    typed = found.raw is None
    before_row, after_row = (wanted.values, found.values) if typed else (wanted.stored, found.stored)
    from_json = typed and wanted.raw is not None and wanted.raw_kind == "jsonl"
    for column in dict.fromkeys((*before_row, *after_row)):
        before, after = before_row.get(column), after_row.get(column)
        if as_text:
            before = "" if before is None else before if isinstance(before, str) else str(before)
        if same(before, after) and from_json and not holds(after, wanted.stored.get(column)):
            before = wanted.stored.get(column)  # typed alike, but the file says more than the type holds
        if not same(before, after):
            raise ManifestError(
                f"{found.location}: row {number}, column '{printable(column)}' differs from what the manifest makes of "
                f"{wanted.location}: {_shown(after)} instead of {_shown(before)}. Apply the manifest again."
            )


def _shown(value: Any) -> str:
    return "nothing" if value is None else printable(repr(value), _SHOWN)


def _compare_folders(source: FolderRows, folder: Path, cleaned: Path) -> None:
    """Other files of a folder byte for byte; those with rows were compared by row."""
    rows = {Path(str(getattr(part, "path", ""))).relative_to(folder) for part in source.parts}
    before, after = _without_card(files_of(folder)), _without_card(files_of(cleaned))
    _compare_names("file", {str(file) for file in before}, {str(file) for file in after}, str(cleaned))
    for file in before:
        if file not in rows and not _same_bytes(folder / file, cleaned / file):
            raise ManifestError(
                f"{printable(cleaned / file, 400)}: differs from {printable(folder / file, 400)}, which holds no row "
                "that the manifest changes. Apply the manifest again."
            )


def _without_card(listed: FolderFiles) -> list[Path]:
    return [file for file in listed.files if file != Path(CARD)]


def _same_bytes(first: Path, second: Path) -> bool:
    with first.open("rb") as one, second.open("rb") as other:
        while True:
            block = one.read(_BLOCK)
            if block != other.read(_BLOCK):
                return False
            if not block:
                return True


def _compare_names(what: str, wanted: Iterable[str], found: Iterable[str], name: str) -> None:
    lacking, surplus = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if lacking or surplus:
        which = f"lacks the {what} '{printable(lacking[0])}'" if lacking else f"has a {what} '{printable(surplus[0])}'"
        rest = " of the input" if lacking else " that the input lacks"
        raise ManifestError(f"{printable(name, 400)}: {which}{rest}. Apply the manifest again.")
