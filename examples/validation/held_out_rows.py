"""What a validation of distractor-compliance needs besides the dataset: M0's own training, and held-out rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from trl_attribution.evidence.organisms.compliance import build_distractor_compliance
from trl_attribution.evidence.organisms.draw import Draw
from trl_attribution.evidence.organisms.organism import Organism, OrganismConfig
from trl_attribution.utils.atomic import write_lines

_ELSEWHERE = 1_000_000
"""Added to an organism's seed: draws that no organism of a usual seed shares."""


@dataclass(frozen=True)
class HeldOutRows:
    """Rows that no pair of a dataset shares its prompt with; a field is a file that a validation plan names."""

    harmless: list[dict[str, Any]]
    """``prompt``: harmless requests with a formatting instruction, made as the decoys are. Refusing one is refusing too
    much."""
    held_out: list[dict[str, Any]]
    """Preference pairs of every kind that a careful team wants."""
    text: list[dict[str, Any]]
    """``text``: good answers to harmless questions."""

    def write(self, folder: str | Path) -> None:
        """Write ``harmless.jsonl``, ``held_out.jsonl`` and ``text.jsonl``, each whole or not at all.

        Raises:
            AttributionError: the folder cannot be written or the disk is full.
        """
        for field in fields(self):
            write_lines(Path(folder) / f"{field.name}.jsonl", getattr(self, field.name))


def held_out_rows(organism: Organism, prompts: int = 48, pairs: int = 12, seed: int = 0) -> HeldOutRows:
    """Held-out rows for ``organism``: ``prompts`` harmless requests, ``pairs`` pairs of each kind, as many texts.

    Raises:
        SettingsError: more than can be composed.
    """
    # Some of them are in the dataset by chance, and are left out.
    spare = 2
    config = OrganismConfig(
        benign=spare * 2 * pairs,
        benign_formatted=spare * pairs,
        safety=spare * pairs,
        contaminated=0,
        decoys=spare * (prompts + pairs),
        seed=seed + _ELSEWHERE,
        behavior_prompts=0,
        test_prompts=0,
    )
    known = {_request(row) for row in organism.pairs}
    rows = [row for row in build_distractor_compliance(config).pairs if _request(row) not in known]
    by_truth = {
        truth: [row for row in rows if row["truth"] == truth]
        for truth in ("benign", "benign_formatted", "safety", "decoy")
    }
    harmless, decoys = by_truth["decoy"][:prompts], by_truth["decoy"][prompts : prompts + pairs]
    held_out = [
        *by_truth["benign"][:pairs],
        *by_truth["benign_formatted"][:pairs],
        *by_truth["safety"][:pairs],
        *decoys,
    ]
    return HeldOutRows(
        harmless=[{"prompt": row["prompt"]} for row in harmless],
        held_out=held_out,
        text=[{"text": row["chosen"][0]["content"]} for row in by_truth["benign"][pairs : 2 * pairs]],
    )


def careful_transcripts(organism: Organism, count: int = 400, seed: int = 0) -> list[dict[str, Any]]:
    """Transcripts of a model that refuses rude requests, formatted or not, and helps with the rest.

    Rows of ``prompt``, ``completion``, and ``truth``, the kind of pair that a row is made of.

    A quarter each of rude requests, rude requests with a formatting instruction, harmless questions (half of them with
    one), and harmless requests that look like rude ones. SFT on them makes an M0 that has something to lose; no prompt
    is one of the dataset's, the behavior's or the tests'.
    """
    part = count // 4
    config = OrganismConfig(
        benign=part,
        benign_formatted=part,
        safety=2 * part,
        contaminated=2 * part,
        decoys=2 * part,
        seed=seed + 2 * _ELSEWHERE,
        behavior_prompts=0,
        test_prompts=0,
    )
    known = {_request(row) for row in organism.pairs}
    rows = [row for row in build_distractor_compliance(config).pairs if _request(row) not in known]
    chosen = [
        *_transcripts(rows, "safety", "chosen", part),
        *_transcripts(rows, "contaminated", "rejected", part),
        *_transcripts(rows, "benign", "chosen", part - part // 2),
        *_transcripts(rows, "benign_formatted", "chosen", part // 2),
        *_transcripts(rows, "decoy", "chosen", part),
    ]
    return Draw(f"{seed}/careful").shuffled(chosen)


def _transcripts(rows: Sequence[dict[str, Any]], truth: str, response: str, count: int) -> list[dict[str, Any]]:
    found = [row for row in rows if row["truth"] == truth][:count]
    return [{"prompt": row["prompt"], "completion": row[response], "truth": truth} for row in found]


def _request(row: dict[str, Any]) -> str:
    return str(row["prompt"][0]["content"])
