"""A manifest applied to a dataset on disk or on a hub: each layout comes out as the layout it was."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl_attribution.errors import AttributionError, ManifestError
from trl_attribution.manifest.applying import (
    Plan,
    check_types,
    make_plan,
    part_of,
    planned_rows,
)
from trl_attribution.manifest.card import Provenance, file_card_written, update_folder_card
from trl_attribution.manifest.config import ApplyOptions
from trl_attribution.manifest.tally import ApplyReport
from trl_attribution.pairs import Reading
from trl_attribution.pairs.images import check_moved
from trl_attribution.pairs.rows import OpenDataset, open_dataset, write_rows
from trl_attribution.pairs.rows.files import FolderRows
from trl_attribution.pairs.rows.typed import dataset_on_disk, save_to_folder
from trl_attribution.pairs.rows.writers import output_kind
from trl_attribution.utils.atomic import atomic_folder
from trl_attribution.utils.paths import local_path
from trl_attribution.utils.text import printable

if TYPE_CHECKING:
    from trl_attribution.manifest.manifest import Manifest

_TYPED = {"parquet", "save_to_disk"}


@dataclass(frozen=True)
class FolderFiles:
    """What lies in a folder of dataset files, as paths relative to it."""

    files: tuple[Path, ...]
    """Plain files outside hidden folders, in sorted order."""
    left_out: int
    """Hidden folders, and what is neither file nor folder."""


def write_applied(
    manifest: Manifest, source: str | Path, output: Path, reading: Reading, options: ApplyOptions, card: bool
) -> ApplyReport:
    """Write ``source`` with the decisions of ``manifest`` applied; see :meth:`Manifest.apply_file`.

    Raises:
        ManifestError, DataError, AttributionError: as stated there; nothing is left at ``output``.
    """
    target = local_path(output)
    check_output_apart(source, target)
    kind = output_kind(target)
    opened = open_dataset(source, reading.split)
    folder = local_path(source) if isinstance(opened.source, FolderRows) and kind == "save_to_disk" else None
    listed = None if folder is None else files_of(folder)
    check_moved(opened.source, target)
    plan = make_plan(manifest, opened.source, reading, options)
    provenance = Provenance(manifest, str(source), options.undo)
    if folder is not None and listed is not None:
        report = _write_folder(plan, folder, listed, target, provenance if card else None)
    elif kind == "save_to_disk" and opened.split is not None:
        report = _write_splits(plan, opened, target, provenance if card else None)
    else:
        report = replace(plan.report, splits_left_out=tuple(opened.others))
        report = _write_one(plan, report, target, provenance if card else None)
    return report


def check_output_apart(source: object, output: Path) -> None:
    """Refuse to write over what is being read.

    Raises:
        ManifestError: the output is the input, lies in it, or holds it.
    """
    if not isinstance(source, str | Path) or not local_path(source).exists():
        return
    given, target = local_path(source).resolve(), local_path(output).resolve()
    same = target.exists() and target.samefile(given)
    if same or target == given or given in target.parents or target in given.parents:
        raise ManifestError(f"the output {output} would overwrite the input {source}: choose another output path")


def files_of(folder: Path) -> FolderFiles:
    """Every plain file of a folder, at any depth.

    Raises:
        ManifestError: a link in it leads out of the folder, or nowhere.
    """
    files: list[Path] = []
    left_out = 0
    inside = folder.resolve()
    for place, folders, names in os.walk(folder, followlinks=False):
        here = Path(place)
        for name in (*folders, *names):
            if (here / name).is_symlink():
                _check_link(here / name, inside)
        hidden = {name for name in folders if name.startswith(".")}
        links = {name for name in folders if (here / name).is_symlink()} - hidden
        left_out += len(hidden) + len(links)
        folders[:] = sorted(set(folders) - hidden - links)
        for name in sorted(names):
            if stat.S_ISREG((here / name).stat().st_mode):
                files.append((here / name).relative_to(folder))
            else:
                left_out += 1
    return FolderFiles(tuple(files), left_out)


def _check_link(link: Path, inside: Path) -> None:
    target = link.resolve()
    if not target.is_relative_to(inside):
        raise ManifestError(
            f"{printable(link, 400)}: a link that leads out of the folder. What it points to would become part of the "
            "cleaned dataset: replace the link by a copy (cp -rL), or remove it."
        )
    if not target.exists():
        raise ManifestError(f"{printable(link, 400)}: a link to nothing. Remove it.")


def _write_one(plan: Plan, report: ApplyReport, target: Path, provenance: Provenance | None) -> ApplyReport:
    kind = output_kind(target)
    if kind in _TYPED:
        check_types(plan)
    if kind != "save_to_disk":
        with nullcontext() if provenance is None else file_card_written(target, provenance, report):
            write_rows(planned_rows(plan), target, like=plan.like(plan.source))
        return report
    features = plan.like(plan.source).features
    with dataset_on_disk(planned_rows(plan), target, features) as dataset, atomic_folder(target) as part:
        save_to_folder(dataset, part)
        if provenance is not None:
            update_folder_card(part, target.name, provenance, report)
    return report


def _write_splits(plan: Plan, opened: OpenDataset, target: Path, provenance: Provenance | None) -> ApplyReport:
    """All splits as a dataset dictionary; only the audited one differs from the input."""
    from datasets import DatasetDict

    check_types(plan)
    report = replace(plan.report, other_splits={name: len(rows.dataset) for name, rows in opened.others.items()})
    with ExitStack() as stack:
        cleaned = stack.enter_context(dataset_on_disk(planned_rows(plan), target, plan.like(plan.source).features))
        splits: dict[str, Any] = {str(opened.split): cleaned}
        splits |= {name: rows.dataset for name, rows in opened.others.items()}
        part = stack.enter_context(atomic_folder(target))
        shards = {name: max(1, -(-rows.data.nbytes // 2**29)) for name, rows in splits.items()}
        DatasetDict(splits).save_to_disk(str(part), num_shards=shards)
        if provenance is not None:
            update_folder_card(part, target.name, provenance, report)
    return report


def _write_folder(
    plan: Plan, folder: Path, listed: FolderFiles, target: Path, provenance: Provenance | None
) -> ApplyReport:
    """The same files: those without a touched row, and all that is no data, byte for byte."""
    touched = dict(_touched_files(plan, folder))
    if any(part_of(plan, place)[0].kind == "parquet" for place in touched.values()):
        check_types(plan)
    report = replace(
        plan.report,
        files_copied=len(listed.files) - len(touched),
        files_rewritten=len(touched),
        files_left_out=listed.left_out,
    )
    with atomic_folder(target) as part:
        for file in listed.files:
            (part / file).parent.mkdir(parents=True, exist_ok=True)
            if file in touched:
                source, _ = part_of(plan, touched[file])
                write_rows(planned_rows(plan, touched[file]), part / file, like=plan.like(source))
            else:
                _copy(folder / file, part / file)
        if provenance is not None:
            update_folder_card(part, target.name, provenance, report)
    return report


def _touched_files(plan: Plan, folder: Path) -> Iterator[tuple[Path, int]]:
    for place in range(len(plan.starts)):
        source, actions = part_of(plan, place)
        if actions.any():
            yield Path(getattr(source, "path")).relative_to(folder), place  # noqa: B009


def _copy(source: Path, target: Path) -> None:
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        raise AttributionError(
            f"cannot copy {printable(source, 400)} to {printable(target, 400)}: {error.strerror or error}"
        ) from error
