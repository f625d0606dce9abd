"""Scores of baselines on disk: taken again where nothing that decides them has changed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trl_attribution.errors import WRONG_VALUES, StoreError
from trl_attribution.evidence.baselines.baseline import BaselineScores, Cost
from trl_attribution.utils.json_file import DescribedFile
from trl_attribution.utils.text import printable

FORMAT = "trl-attribution baseline"
VERSION = 1


@dataclass(frozen=True)
class SavedScores:
    """A place for the scores of one baseline with its settings on one set of pairs.

    ``NAME-DIGEST.scores.jsonl`` has a line of ``pair_id`` and ``score`` for each pair, as a validation plan takes it;
    ``NAME-DIGEST.json``, written last, says what they are, what they cost, and their checksum.
    """

    folder: Path
    name: str
    settings: Mapping[str, Any]
    pairs: str
    """What stands for the set of pairs, see :func:`pairs_digest`."""

    @property
    def stem(self) -> str:
        """Part of the file names: the baseline's name, as far as a path can hold it, and a digest of the rest."""
        content = json.dumps([dict(self.settings), self.pairs], sort_keys=True, default=str)
        digest = hashlib.sha256(content.encode()).hexdigest()[:12]
        return f"{re.sub(r'[^a-z0-9]+', '-', self.name.lower()).strip('-')[:40]}-{digest}"

    @property
    def scores_file(self) -> Path:
        """Where the scores lie."""
        return self.folder / f"{self.stem}.scores.jsonl"

    def load(self) -> BaselineScores | None:
        """What was saved; None where there is nothing, or not all of it.

        Raises:
            StoreError: the files are broken or of a newer version.
        """
        files = self._files
        if not files.description.exists():
            return None
        found = files.load()
        try:
            lines = [json.loads(line) for line in found.payload.splitlines()]
            scores = {str(line["pair_id"]): float(line["score"]) for line in lines}
            return BaselineScores(self.name, scores, Cost(**found.values["cost"]), tuple(found.values["notes"]))
        except WRONG_VALUES as error:
            raise StoreError(f"{files.description} is broken: {printable(error, 300)}. {files.advice}") from error

    def save(self, found: BaselineScores) -> None:
        """Write ``found``, whole or not at all.

        Raises:
            AttributionError: the folder cannot be written.
        """
        lines = "".join(
            json.dumps({"pair_id": pair_id, "score": score}) + "\n" for pair_id, score in found.scores.items()
        )
        values = {
            "name": self.name,
            "settings": dict(self.settings),
            "pairs": len(found.scores),
            "sha256": "",  # here in the file
            "cost": found.cost.to_json(),
            "notes": list(found.notes),
        }
        self._files.save(values, lines.encode("ascii"))

    @property
    def _files(self) -> DescribedFile:
        described = self.folder / f"{self.stem}.json"
        advice = f"Remove {described.name} to compute these scores again."
        return DescribedFile(described, self.scores_file, FORMAT, VERSION, advice, "sha256")


def pairs_digest(pair_ids: list[str]) -> str:
    """A digest of the pairs in their order."""
    return hashlib.sha256("\n".join(pair_ids).encode()).hexdigest()
