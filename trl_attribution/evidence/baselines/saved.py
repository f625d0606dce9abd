"""Scores of baselines on disk: taken again where nothing that decides them has changed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trl_attribution.errors import StoreError
from trl_attribution.evidence.baselines.baseline import BaselineScores, Cost
from trl_attribution.utils.atomic import atomic_path, write_json
from trl_attribution.utils.json_file import read_json

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
        path = self.folder / f"{self.stem}.json"
        if not path.exists():
            return None
        header = read_json(path, FORMAT, VERSION, advice="Remove it to compute these scores again.")
        try:
            content = self.scores_file.read_bytes()
            if hashlib.sha256(content).hexdigest() != header["sha256"]:
                raise ValueError("the scores do not match their checksum")
            lines = [json.loads(line) for line in content.splitlines()]
            scores = {str(line["pair_id"]): float(line["score"]) for line in lines}
            return BaselineScores(self.name, scores, Cost(**header["cost"]), tuple(header["notes"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{path} is broken: {error}. Remove it to compute these scores again.") from error

    def save(self, found: BaselineScores) -> None:
        """Write ``found``, whole or not at all.

        Raises:
            AttributionError: the folder cannot be written.
        """
        lines = "".join(
            json.dumps({"pair_id": pair_id, "score": score}) + "\n" for pair_id, score in found.scores.items()
        )
        with atomic_path(self.scores_file) as part:
            part.write_text(lines, encoding="ascii")
        write_json(
            self.folder / f"{self.stem}.json",
            {
                "format": FORMAT,
                "format_version": VERSION,
                "name": self.name,
                "settings": dict(self.settings),
                "pairs": len(found.scores),
                "sha256": hashlib.sha256(lines.encode()).hexdigest(),
                "cost": found.cost.to_json(),
                "notes": list(found.notes),
            },
        )


def pairs_digest(pair_ids: list[str]) -> str:
    """A digest of the pairs in their order."""
    return hashlib.sha256("\n".join(pair_ids).encode()).hexdigest()
