"""``witness.parquet``: likelihood scores of the pairs that the second witness was asked about, beside an audit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from trl_attribution.behaviors.likelihood_score import PairLikelihood
from trl_attribution.errors import WRONG_VALUES, AttributionError, StoreError
from trl_attribution.scoring.witness import Heard
from trl_attribution.utils.atomic import atomic_path
from trl_attribution.utils.json_file import checked_json
from trl_attribution.utils.text import printable

FORMAT = "trl-attribution witness"
VERSION = 1
KIND = "likelihood"
_KEY = b"trl_attribution"
_ADVICE = "Remove the file, and run the audit again."
_SCHEMA = pa.schema(
    [
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("probe", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("score", pa.float64(), nullable=True),
        pa.field("described", pa.float64(), nullable=True),
        pa.field("plain", pa.float64(), nullable=True),
        pa.field("tokens", pa.int64(), nullable=True),
        pa.field("left_out", pa.string(), nullable=True),
    ]
)


class Binding(BaseModel):
    """What all answers depend on but the description."""

    model_config = ConfigDict(frozen=True)

    dataset_fingerprint: str
    model_digest: str
    dtype: str
    max_length: int | None


class ProbeHeader(BaseModel):
    """One probe's part."""

    model_config = ConfigDict(frozen=True)

    description: str
    way: Annotated[str, Field(max_length=200)]
    """Where it stood in the prompts; several, if prompts differ."""


@dataclass(frozen=True)
class Row:
    """What was found of one pair."""

    row: int
    answer: PairLikelihood | str
    """A likelihood, or why there is none."""


@dataclass
class WitnessTable:
    """Answers by probe and pair."""

    binding: Binding
    probes: dict[str, ProbeHeader] = field(default_factory=dict)
    rows: dict[str, dict[str, Row]] = field(default_factory=dict)
    """By probe, then by pair id."""

    def heard(self, probe: str) -> Heard:
        """The pairs that have a likelihood under ``probe``, in the dataset's order."""
        found = [
            (pair_id, one.row, one.answer.score)
            for pair_id, one in sorted(self.rows.get(probe, {}).items(), key=lambda item: item[1].row)
            if isinstance(one.answer, PairLikelihood)
        ]
        ids, rows, scores = zip(*found, strict=True) if found else ((), (), ())
        return Heard(tuple(ids), np.array(rows, dtype=np.int64), np.array(scores, dtype=np.float64))

    def left_out(self, probe: str) -> dict[str, int]:
        """How many pairs have none, by reason."""
        reasons = [one.answer for one in self.rows.get(probe, {}).values() if isinstance(one.answer, str)]
        return {reason: reasons.count(reason) for reason in sorted(set(reasons))}

    def write(self, path: Path) -> None:
        """Write the table, atomically; equal content gives equal rows."""
        probes = {name: one.model_dump() for name, one in self.probes.items()}
        header = {"format": FORMAT, "format_version": VERSION, "binding": self.binding.model_dump(), "probes": probes}
        lines = [
            _line(pair_id, probe, one)
            for probe, rows in self.rows.items()
            for pair_id, one in sorted(rows.items(), key=lambda item: item[1].row)
        ]
        schema = _SCHEMA.with_metadata({_KEY: json.dumps(header).encode()})
        with atomic_path(path) as part:
            pq.write_table(pa.Table.from_pylist(lines, schema=schema), part, compression="zstd")

    @classmethod
    def read(cls, path: Path) -> WitnessTable:
        """The table at ``path``.

        Raises:
            StoreError: it is broken, foreign or of a newer version.
        """
        where = printable(path)
        try:
            table = pq.read_table(path)
            header = json.loads((table.schema.metadata or {}).get(_KEY, b"null"))
            values = checked_json(header, FORMAT, VERSION, where, StoreError, _ADVICE)
            found = cls(
                Binding(**values["binding"]), {name: ProbeHeader(**one) for name, one in values["probes"].items()}
            )
            for line in table.to_pylist():
                found.rows.setdefault(line["probe"], {})[line["pair_id"]] = Row(line["row"], _answer(line))
        except AttributionError:
            raise
        except (pa.ArrowException, OSError, *WRONG_VALUES) as error:
            raise StoreError(f"{where} is broken: {printable(error, 200)}. {_ADVICE}") from error
        if found.rows.keys() - found.probes.keys():
            raise StoreError(f"{where} is broken: it has pairs of probes that its header does not name. {_ADVICE}")
        return found


def _line(pair_id: str, probe: str, one: Row) -> Mapping[str, Any]:
    line = {"pair_id": pair_id, "row": one.row, "probe": probe, "kind": KIND}
    if isinstance(one.answer, str):
        return {**line, "left_out": one.answer}
    answer = one.answer
    return {
        **line,
        "score": answer.score,
        "described": answer.described,
        "plain": answer.plain,
        "tokens": answer.tokens,
    }


def _answer(line: Mapping[str, Any]) -> PairLikelihood | str:
    if line["left_out"] is not None:
        return str(line["left_out"])
    return PairLikelihood(float(line["described"]), float(line["plain"]), int(line["tokens"]))
