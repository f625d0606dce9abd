"""The folder of a validation: what it is bound to, and each cell's result as its done mark."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from trl_attribution.errors import DataError, SettingsError, describe_difference
from trl_attribution.evidence.validation.cells import Cell
from trl_attribution.evidence.validation.costs import RunCost
from trl_attribution.evidence.validation.plan import MeasurePlan, MixedPlan, TrainingPlan
from trl_attribution.utils.atomic import atomic_path, write_json
from trl_attribution.utils.json_file import read_json
from trl_attribution.utils.text import printable

CELL_FORMAT = "trl-attribution validation cell"
RANKING = "ranking "
"""How the names of settings begin that decide about the cells of one ranking only."""
SOURCES = "sources"
"""Name of the setting with the digest of the pairs' sources, which only plans that drop sources have."""
PARTS: dict[str, type[BaseModel]] = {"training": TrainingPlan, "measures": MeasurePlan, "mixed": MixedPlan}
"""The settings that are whole parts of a plan."""
BINDING_FORMAT = "trl-attribution validation settings"
VERSION = 1


@dataclass(frozen=True)
class CellResult:
    """What one cell found."""

    cell: Cell
    shares: dict[str, list[float]]
    """By measure, the share of each prompt's responses that are judged so ``[M]``."""
    accuracy: float | None
    margin: float | None
    perplexity: float | None
    steps: int
    """Optimizer steps that were made."""
    changes: dict[str, Any]
    training: RunCost
    measuring: RunCost

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the cell."""
        return {name: value for name, value in asdict(self).items() if name != "cell"}


class CellFolder:
    """The cells in a validation's folder.

    ``cells/NAME.json`` is written last and at once: a cell that has it is done. ``cells/NAME.responses.json`` beside it
    holds the responses.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cells = folder / "cells"

    def bind(self, settings: dict[str, Any]) -> None:
        """Tie the folder to what decides a cell's numbers; later runs have to agree, but for rankings that come new.

        Raises:
            SettingsError: it is tied to something else; the difference is printed.
        """
        path = self.folder / "binding.json"
        # As JSON gives them back: a tuple is a list by then.
        asked = json.loads(json.dumps(settings))
        stored = self.bound_to() if path.exists() else {}
        if stored and (differing := _differing(stored, asked)):
            raise SettingsError(
                f"{printable(self.folder)} holds cells of another validation:\n{differing}\n"
                "Seeds, sizes, selections, interventions and rankings may be added; anything else needs another folder."
            )
        if stored != stored | asked:
            write_json(path, {"format": BINDING_FORMAT, "format_version": VERSION, "bound_to": stored | asked})

    def bound_to(self) -> dict[str, Any]:
        """What the folder is tied to.

        Raises:
            DataError: nothing, or it cannot be read.
        """
        values = read_json(self.folder / "binding.json", BINDING_FORMAT, VERSION, DataError)
        bound = values.get("bound_to")
        if not isinstance(bound, dict):
            raise DataError(f"{printable(self.folder / 'binding.json')} is broken; choose another folder")
        return bound

    def done(self, cell: Cell) -> bool:
        """Whether ``cell`` has its done mark."""
        return self._path(cell).exists()

    def save(self, result: CellResult, responses: dict[str, Any]) -> None:
        """Write the responses, then the result."""
        header = {"format": CELL_FORMAT, "format_version": VERSION, "name": result.cell.name}
        texts = self.cells / f"{result.cell.name}.responses.json"
        write_json(texts, responses)
        write_json(self._path(result.cell), {**header, **result.to_json()})

    def load(self, cell: Cell) -> CellResult:
        """The result of a cell that is done.

        Raises:
            DataError: the file is broken, foreign, or of a newer version.
        """
        path = self._path(cell)
        values = read_json(path, CELL_FORMAT, VERSION, DataError)
        try:
            return TypeAdapter(CellResult).validate_python({**values, "cell": cell})
        except ValidationError as error:
            raise DataError(
                f"{printable(path)} is broken ({printable(error, 80)}); remove it, and it is run again"
            ) from None

    def take_from(self, other: Path, cells: Iterable[Cell]) -> int:
        """Copy the cells that ``other`` has done and this folder has not; their number.

        Raises:
            SettingsError: ``other`` is tied to other settings.
            DataError: it is no folder of a validation.
        """
        source = CellFolder(other)
        if differing := _differing(source.bound_to(), self.bound_to()):
            raise SettingsError(f"{printable(other)} holds cells of another validation:\n{differing}")
        missing = [cell for cell in cells if source.done(cell) and not self.done(cell)]
        for cell in missing:
            source.load(cell)  # a broken one is not taken over
            for name in (f"{cell.name}.responses.json", f"{cell.name}.json"):
                given = source.cells / name
                if not given.is_file():
                    raise DataError(f"{printable(given)} is missing; copy the whole folder, or run the cell again")
                with atomic_path(self.cells / name) as part:
                    shutil.copyfile(given, part)
        return len(missing)

    def _path(self, cell: Cell) -> Path:
        return self.cells / f"{cell.name}.json"


def _differing(stored: dict[str, Any], asked: dict[str, Any]) -> str:
    """The settings in which two validations differ, a line each; a ranking that only one has is no difference."""
    shared = {name for name in stored.keys() | asked.keys() if name != SOURCES and not name.startswith(RANKING)}
    shared |= stored.keys() & asked.keys()
    return describe_difference(
        *({name: _said(name, one[name]) for name in shared & one.keys()} for one in (stored, asked))
    )


def _said(name: str, value: Any) -> Any:
    """A part of a plan without what is default: a field may be younger than the folder that is compared."""
    if name not in PARTS or not isinstance(value, dict):
        return value
    fields = PARTS[name].model_fields
    return {field: one for field, one in value.items() if field not in fields or one != fields[field].default}
