"""Decisions about the pairs of one dataset: kept in a checked file, and replayed on the dataset or undone."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar

from pydantic import ConfigDict, Field, FiniteFloat, NonNegativeInt, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from trl_attribution import __version__
from trl_attribution.atomic import atomic_path
from trl_attribution.dataset_io import write_rows
from trl_attribution.dataset_io.writers import output_kind
from trl_attribution.errors import ManifestError, SettingsError
from trl_attribution.manifest.applying import (
    ApplyReport,
    apply_to_dataset,
    apply_to_list,
    check_output_apart,
    check_types,
    make_plan,
    planned_rows,
)
from trl_attribution.pairs import Reading
from trl_attribution.text import printable

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["ApplyReport", "Decision", "Manifest", "ManifestHeader"]

MANIFEST_FORMAT: Final = "trl-attribution manifest"
MANIFEST_VERSION = 1

_STRICT = ConfigDict(extra="forbid")
_D = TypeVar("_D", bound="Dataset | Sequence[Mapping[str, Any]]")


@checked_dataclass(frozen=True, config=_STRICT)
class Decision:
    """What is to be done with one pair, and the score that says so."""

    pair_id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    row: NonNegativeInt
    """The pair's first row in the audited dataset, from 0."""
    action: Literal["keep", "filter", "flip"]
    probe: str
    """The probe whose score decided."""
    score: FiniteFloat
    rank: NonNegativeInt
    q_value: Annotated[float, Field(ge=0, le=1)] | None = None


@checked_dataclass(frozen=True, kw_only=True, config=_STRICT)
class ManifestHeader:
    """Everything needed to check a manifest against a dataset and to say where it came from."""

    format: Literal["trl-attribution manifest"] = MANIFEST_FORMAT
    version: int = MANIFEST_VERSION
    action: Literal["filter", "flip"]
    """The one thing done to pairs in this manifest; single decisions may still be ``keep``."""
    dataset_fingerprint: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Of the audited dataset's pairs in row order, as ``pairs.dataset_fingerprint`` gives it."""
    model_fingerprint: str
    probe_fingerprints: dict[str, str]
    rule: dict[str, Any]
    """How pairs were flagged, such as ``{"top_k": 500}``."""
    counts: dict[str, int] = Field(default_factory=dict)
    """Numbers to check and to show; ``decisions`` and one for each action are filled in."""
    reading: dict[str, Any] = Field(default_factory=dict)
    """The ``Reading`` that made pairs of the dataset's rows."""
    tool_version: str = __version__


_HEADER: TypeAdapter[ManifestHeader] = TypeAdapter(ManifestHeader)
_DECISION: TypeAdapter[Decision] = TypeAdapter(Decision)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A header and a decision for each listed pair; pairs that are not listed are kept.

    Raises:
        ManifestError: two decisions for one pair, or an action other than the header's.
    """

    header: ManifestHeader
    decisions: tuple[Decision, ...]

    def __post_init__(self) -> None:
        decisions = tuple(self.decisions)
        for place, fault in _faults(self.header, decisions):
            raise ManifestError(f"decision {place}: {fault}")
        counts = {**self.header.counts, **_counts(decisions)}
        object.__setattr__(self, "decisions", decisions)
        object.__setattr__(self, "header", dataclasses.replace(self.header, counts=counts))

    @property
    def reading(self) -> Reading:
        """How the audited dataset's rows became pairs.

        Raises:
            ManifestError: the header's ``reading`` holds something else.
        """
        try:
            return Reading(**self.header.reading)
        except (TypeError, SettingsError) as error:
            raise ManifestError(f"the manifest's reading cannot be used: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write the manifest as JSON lines, atomically: the header first, then a decision a line.

        Raises:
            AttributionError: the file cannot be written; nothing is left behind.
        """
        with atomic_path(path) as part, part.open("w", encoding="utf-8", newline="\n") as handle:
            handle.write(_json(dataclasses.asdict(self.header)))
            for decision in self.decisions:
                handle.write(_json(vars(decision)))

    @classmethod
    def load(cls, path: str | Path) -> Manifest:
        """Read a manifest and check every line of it.

        Raises:
            ManifestError: no such file, not a manifest, of a newer version, cut short, or a faulty line; the message
                names file and line.
        """
        try:
            lines = Path(path).read_bytes().splitlines()
        except OSError as error:
            raise ManifestError(f"cannot read the manifest {path}: {error.strerror or error}") from error
        header = _read_header(lines[0] if lines else b"", f"{path}:1")
        decisions, numbers = [], []
        for number, line in enumerate(lines[1:], start=2):
            if line.strip():
                decisions.append(_validated(_DECISION, line, f"{path}:{number}"))
                numbers.append(number)
        for place, fault in _faults(header, decisions):
            raise ManifestError(f"{path}:{numbers[place]}: {fault}")
        stated = header.counts.get("decisions", len(decisions))
        if stated != len(decisions):
            raise ManifestError(
                f"{path}: has {len(decisions)} decisions where its header counts {stated}: lines were lost or added. "
                "Get the whole file again, or make the manifest anew."
            )
        manifest = cls(header, tuple(decisions))
        try:
            manifest.reading  # noqa: B018 (checked before anybody relies on it)
        except ManifestError as error:
            raise ManifestError(f"{path}:1: {error}") from error
        return manifest

    def apply(self, dataset: _D, *, undo: bool = False, allow_missing: bool = False) -> _D:
        """The dataset with the listed rows dropped or their chosen and rejected exchanged, of the type it came in.

        ``undo=True`` takes back the flips of this manifest from a dataset that they were applied to.

        Raises:
            ManifestError: the dataset lacks listed pairs (unless ``allow_missing``), is not one dataset in memory, or
                undoing does not give back the audited dataset.
            DataError: the dataset cannot be read as pairs.
        """
        return self.apply_with_report(dataset, undo=undo, allow_missing=allow_missing)[0]

    def apply_with_report(
        self, dataset: _D, *, undo: bool = False, allow_missing: bool = False
    ) -> tuple[_D, ApplyReport]:
        """As :meth:`apply`, with what was done."""
        from datasets import Dataset

        if not isinstance(dataset, Dataset | list):
            raise ManifestError(
                f"cannot apply a manifest to a {type(dataset).__name__} in memory. Give one split as a "
                "datasets.Dataset or a list of dicts, or use apply_file for files."
            )
        plan = make_plan(self, dataset, self.reading, undo, allow_missing)
        check_types(plan)
        if isinstance(dataset, Dataset):
            return apply_to_dataset(plan, dataset), plan.report
        return apply_to_list(plan, dataset), plan.report  # type: ignore[return-value]

    def apply_file(
        self,
        source: str | Path,
        output: str | Path,
        *,
        reading: Reading | None = None,
        undo: bool = False,
        allow_missing: bool = False,
    ) -> ApplyReport:
        """Write the dataset at ``source`` to ``output`` with the decisions applied, row by row.

        JSON lines that are not touched come out byte for byte; of those that are flipped only the two values change
        places. Every other format keeps its columns and their types.

        Args:
            source: anything that can be audited: file, folder, ``save_to_disk`` folder or Hub id.
            output: ``.jsonl``, ``.csv`` (each also with ``.gz``), ``.parquet``, or a new folder for ``save_to_disk``.
            reading: how to read the source, where it is laid out differently from the audited dataset.
            undo: take back the flips instead.
            allow_missing: go on where the dataset lacks listed pairs.

        Raises:
            ManifestError: the dataset lacks listed pairs, or the output would overwrite the input.
            DataError: the dataset cannot be read as pairs, or the output's format is unknown.
            AttributionError: the output cannot be written. In every case nothing is left at ``output``.
        """
        target = Path(output)
        check_output_apart(source, target)
        kind = output_kind(target)
        plan = make_plan(self, source, reading or self.reading, undo, allow_missing)
        if kind in {"parquet", "save_to_disk"}:
            check_types(plan)
        write_rows(planned_rows(plan), target, like=plan.source)
        return plan.report


def _faults(header: ManifestHeader, decisions: Iterable[Decision]) -> Iterator[tuple[int, str]]:
    """What is wrong between decisions: the place of each, from 0, and a sentence."""
    seen: set[str] = set()
    allowed = ("keep", header.action)
    for place, decision in enumerate(decisions):
        if decision.pair_id in seen:
            yield place, f"a second decision for pair {decision.pair_id}: leave one of the two"
        if decision.action not in allowed:
            yield place, f"action '{decision.action}' in a {header.action} manifest: write one manifest for each action"
        seen.add(decision.pair_id)


def _counts(decisions: Sequence[Decision]) -> dict[str, int]:
    actions = Counter(decision.action for decision in decisions)
    return {"decisions": len(decisions), **{action: actions[action] for action in sorted(actions)}}


def _read_header(line: bytes, location: str) -> ManifestHeader:
    try:
        header = json.loads(line)
    except ValueError:
        header = None
    if not isinstance(header, dict) or header.get("format") != MANIFEST_FORMAT:
        raise ManifestError(
            f"{location}: this is no manifest header. The first line of a manifest is a JSON object with "
            f'"format": "{MANIFEST_FORMAT}"; the files that an audit writes are manifest.filter.jsonl and '
            "manifest.flip.jsonl."
        )
    version = header.get("version")
    if isinstance(version, int) and version > MANIFEST_VERSION:
        raise ManifestError(
            f"{location}: manifest format version {version}; this trl-attribution ({__version__}) reads up to "
            f"{MANIFEST_VERSION}. Install a newer trl-attribution to use it."
        )
    return _validated(_HEADER, line, location)


_T = TypeVar("_T")


def _validated(adapter: TypeAdapter[_T], line: bytes, location: str) -> _T:
    try:
        return adapter.validate_json(line, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        shown = f" (it is {printable(first['input'], 60)})" if field and first["type"] != "missing" else ""
        where = f"field '{printable(field)}': " if field else ""
        raise ManifestError(
            f"{location}: {where}{first['msg']}{shown}. Mend the line or make the manifest anew."
        ) from None


def _json(values: dict[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False, allow_nan=False) + "\n"
