"""Decisions about the pairs of one dataset: kept in a checked file, and replayed on the dataset or undone."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar, Unpack

from pydantic import ConfigDict, Field, FiniteFloat, NonNegativeInt, TypeAdapter
from pydantic.dataclasses import dataclass as checked_dataclass

from trl_attribution.errors import ManifestError, SettingsError
from trl_attribution.manifest.config import Applying, ApplyOptions
from trl_attribution.manifest.decisions import Action, Fingerprint, PairId
from trl_attribution.manifest.lines import LineFormat, entries, json_line
from trl_attribution.pairs import Reading
from trl_attribution.utils.atomic import atomic_path
from trl_attribution.utils.kinds import Kind
from trl_attribution.utils.text import printable
from trl_attribution.utils.version import __version__

if TYPE_CHECKING:
    from datasets import Dataset

    from trl_attribution.manifest.tally import ApplyReport

MANIFEST_FORMAT: Final = "trl-attribution manifest"
# A reader from before "mixed", "parents", "reviews", "reviewer" and "kind" refuses a manifest that has one of them, and
# can read all others: nothing is misread, so the version stays.
MANIFEST_VERSION: Final = 1
MANIFEST_LINES = LineFormat(
    MANIFEST_FORMAT,
    MANIFEST_VERSION,
    "manifest",
    "the files that an audit writes are manifest.filter.jsonl and manifest.flip.jsonl",
)
_STRICT = ConfigDict(extra="forbid")
_COUNTED = ("decisions", "filter", "flip", "keep")
_LEFT_OUT_IF_EMPTY = ("parents", "reviews")
_D = TypeVar("_D", bound="Dataset | Sequence[Mapping[str, Any]]")


@checked_dataclass(frozen=True, config=_STRICT)
class Decision:
    """What is to be done with one pair, and the score that says so."""

    pair_id: PairId
    row: NonNegativeInt | None
    """The pair's first row in the audited dataset, from 0; None where a reviewer added the pair."""
    action: Action
    probe: str
    """The probe whose score decided; "" where a reviewer added the pair."""
    score: FiniteFloat | None
    """None where a reviewer added the pair."""
    rank: NonNegativeInt | None
    """1 is the highest score; None where a reviewer added the pair."""
    q_value: Annotated[float, Field(ge=0, le=1)] | None = None
    reviewer: str | None = None
    """Who decided, where a person did; the score then only says what the probe thought of the pair."""


@checked_dataclass(frozen=True, kw_only=True, config=_STRICT)
class ManifestHeader:
    """Everything needed to check a manifest against a dataset and to say where it came from."""

    format: Literal["trl-attribution manifest"] = MANIFEST_FORMAT
    version: Annotated[int, Field(ge=1)] = MANIFEST_VERSION
    action: Literal["filter", "flip", "mixed"]
    """What is done to pairs in this manifest, ``mixed`` for both; single decisions may still be ``keep``."""
    dataset_fingerprint: Fingerprint
    """Of the audited dataset's pairs in row order, as ``pairs.dataset_fingerprint`` gives it."""
    model_fingerprint: str
    probe_fingerprints: dict[str, str]
    rule: dict[str, Any]
    """How pairs were flagged, such as ``{"top_k": 500}``."""
    counts: dict[str, int] = Field(default_factory=dict)
    """Numbers to check and to show; ``decisions`` and one for each action are filled in."""
    kind: Kind = "pair"
    """What the dataset holds examples of."""
    reading: dict[str, Any] = Field(default_factory=dict)
    """The ``Reading`` that made pairs of the dataset's rows."""
    parents: tuple[Fingerprint, ...] = ()
    """Digests of the manifests that this one was made from."""
    reviews: tuple[Fingerprint, ...] = ()
    """Digests of the reviewers' decisions that went into it."""
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
        stated = {name: count for name, count in self.header.counts.items() if name not in _COUNTED}
        counts = {**stated, **_counts(decisions)}
        object.__setattr__(self, "decisions", decisions)
        object.__setattr__(self, "header", dataclasses.replace(self.header, counts=counts))

    @property
    def reading(self) -> Reading:
        """How the audited dataset's rows became pairs.

        Raises:
            ManifestError: the header's ``reading`` holds something else.
        """
        try:
            reading = Reading(**self.header.reading)
        except (TypeError, SettingsError) as error:
            raise ManifestError(f"the manifest's reading cannot be used: {printable(error, 300)}") from error
        for name, value in vars(reading).items():
            if not isinstance(value, str) and not (name in ("split", "eos_token") and value is None):
                raise ManifestError(
                    f"the manifest's reading cannot be used: {name} is a {type(value).__name__}, not text"
                )
        return reading

    @property
    def digest(self) -> str:
        """64 hex characters over all that the manifest says: equal for equal content, whatever the order of its lines.

        The version of the tool that wrote it is no content.
        """
        header = {name: value for name, value in _header_values(self.header).items() if name != "tool_version"}
        digest = hashlib.sha256(_canonical(header).encode())
        for line in sorted(_canonical(vars(decision)) for decision in self.decisions):
            digest.update(b"\n" + line.encode())
        return digest.hexdigest()

    def save(self, path: str | Path) -> None:
        """Write the manifest as JSON lines, atomically: the header first, then a decision a line.

        Raises:
            AttributionError: the file cannot be written; nothing is left behind.
        """
        with atomic_path(path) as part, part.open("w", encoding="utf-8", newline="\n") as handle:
            handle.write(json_line(_header_values(self.header)))
            for decision in self.decisions:
                values = dict(vars(decision))
                if decision.reviewer is None:
                    del values["reviewer"]
                handle.write(json_line(values))

    @classmethod
    def load(cls, path: str | Path) -> Manifest:
        """Read a manifest and check every line of it.

        Raises:
            ManifestError: no such file, not a manifest, of a newer version, cut short, or a faulty line; the message
                names file and line.
        """
        lines = MANIFEST_LINES.lines(path)
        header = MANIFEST_LINES.header(_HEADER, lines, path)
        read = list(entries(_DECISION, lines, path))
        decisions = tuple(decision for _, decision in read)
        for place, fault in _faults(header, decisions):
            raise ManifestError(f"{path}:{read[place][0]}: {fault}")
        _check_counts(header, decisions, path)
        manifest = cls(header, decisions)
        try:
            manifest.reading  # noqa: B018 (checked before anybody relies on it)
        except ManifestError as error:
            raise ManifestError(f"{path}:1: {error}") from error
        return manifest

    def apply(self, dataset: _D, **how: Unpack[Applying]) -> _D:
        """The dataset with the listed rows dropped or their chosen and rejected exchanged, of the type it came in.

        ``action="weight"`` lets the rows to filter stay, and gives every row a weight (:class:`ApplyOptions`).
        ``undo=True`` takes back the flips, or weights, of this manifest from a dataset that they were applied to,
        ``allow_missing`` goes on where the dataset lacks listed pairs. ``columns`` says which other columns go with one
        response and have to be exchanged or negated with it.

        Raises:
            ManifestError: the dataset lacks listed pairs (unless ``allow_missing``), is not one dataset in memory, has
                a column that looks as if it belonged to one response and is not declared, or undoing does not give
                back the audited dataset.
            DataError: the dataset cannot be read as pairs.
        """
        return self.apply_with_report(dataset, **how)[0]

    def apply_with_report(self, dataset: _D, **how: Unpack[Applying]) -> tuple[_D, ApplyReport]:
        """As :meth:`apply`, with what was done."""
        from trl_attribution.manifest.applying import applied

        return applied(self, dataset, self.reading, ApplyOptions.of(how))

    def apply_file(
        self,
        source: str | Path,
        output: str | Path,
        *,
        reading: Reading | None = None,
        card: bool = False,
        **how: Unpack[Applying],
    ) -> ApplyReport:
        """Write the dataset at ``source`` to ``output`` with the decisions applied, row by row.

        JSON lines that are not touched come out byte for byte; of those that are flipped only the values change
        places. Every other format keeps its columns and their types. A folder of files becomes a folder of the same
        files, a dataset with several splits one with the same splits: what the audited split does not cover is
        carried over as it is.

        Args:
            source: anything that can be audited: file, folder, ``save_to_disk`` folder or Hub id.
            output: ``.jsonl``, ``.csv`` (each also with ``.gz``), ``.parquet``, or a new folder.
            reading: how to read the source, where it is laid out differently from the audited dataset.
            card: write where the data came from: a section in ``README.md`` of an output folder, and a file
                ``OUTPUT.card.md`` beside an output file.
            how: as for :meth:`apply`.

        Raises:
            ManifestError: as for :meth:`apply`; also where the output would overwrite the input, or a folder holds
                links that lead out of it.
            DataError: the dataset cannot be read as pairs, or the output's format is unknown.
            AttributionError: the output cannot be written. In every case nothing is left at ``output``.
        """
        from trl_attribution.manifest.files import write_applied

        return write_applied(self, source, Path(output), reading or self.reading, ApplyOptions.of(how), card)

    def check_file(
        self, source: str | Path, cleaned: str | Path, *, reading: Reading | None = None, **how: Unpack[Applying]
    ) -> ApplyReport:
        """Make sure that ``cleaned`` is what :meth:`apply_file` with the same arguments makes of ``source``.

        Raises:
            ManifestError: it is not; the message names the first difference by row and column. Also as
                :meth:`apply_file` raises.
            DataError: either dataset cannot be read.
        """
        from trl_attribution.manifest.checking import check_applied

        return check_applied(self, source, cleaned, reading or self.reading, ApplyOptions.of(how))


def _faults(header: ManifestHeader, decisions: Iterable[Decision]) -> Iterator[tuple[int, str]]:
    """What is wrong between decisions: the place of each, from 0, and a sentence."""
    seen: set[str] = set()
    for place, decision in enumerate(decisions):
        if decision.pair_id in seen:
            yield place, f"a second decision for pair {decision.pair_id}: leave one of the two"
        if header.action != "mixed" and decision.action not in ("keep", header.action):
            fault = f"action '{decision.action}' in a {header.action} manifest: write one manifest for each action"
            yield place, f"{fault}, or one of action mixed"
        seen.add(decision.pair_id)


def _check_counts(header: ManifestHeader, decisions: Sequence[Decision], path: str | Path) -> None:
    actual = _counts(decisions)
    for name in _COUNTED:
        stated = header.counts.get(name, actual.get(name, 0))
        if stated != actual.get(name, 0):
            what = "decisions" if name == "decisions" else f"decisions to {name}"
            raise ManifestError(
                f"{path}: has {actual.get(name, 0)} {what} where its header counts {stated}: lines were lost or added. "
                "Get the whole file again, or make the manifest anew."
            )


def _counts(decisions: Sequence[Decision]) -> dict[str, int]:
    actions = Counter(decision.action for decision in decisions)
    return {"decisions": len(decisions), **{action: actions[action] for action in sorted(actions)}}


def _header_values(header: ManifestHeader) -> dict[str, Any]:
    values = dataclasses.asdict(header)
    if header.kind == "pair":
        del values["kind"]  # as in manifests from before there were others
    return {name: value for name, value in values.items() if value or name not in _LEFT_OUT_IF_EMPTY}


def _canonical(values: Mapping[str, Any]) -> str:
    present = {name: value for name, value in values.items() if value is not None}
    return json.dumps(present, sort_keys=True, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
