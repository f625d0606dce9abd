"""Audits of known outcome: a probe that keeps pairs of its own, and datasets that teach what it is of or do not."""

from __future__ import annotations

from pathlib import Path

from tests.audit_cases import ANSWERS, ASKS, LAYERS, REFUSALS, THINGS, Row, auditor_of, pair_rows, tiny_loaded
from trl_attribution.activations import ActivationConfig
from trl_attribution.audit.folder import Audit
from trl_attribution.models import LoadedModel
from trl_attribution.probes import BuildConfig, Probe, build_from_behavior

NAME = "answers"
PROMPTS = 12


def answering_rows(count: int, start: int = 0) -> list[Row]:
    """Rows in which the answer is chosen over the refusal."""
    return [
        row if (start + number) % 2 else {**row, "chosen": row["rejected"], "rejected": row["chosen"]}
        for number, row in enumerate(pair_rows(count, start))
    ]


def refusing_rows(count: int, start: int = 0) -> list[Row]:
    """The same rows the other way round."""
    return [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in answering_rows(count, start)]


def answering_probe(loaded: LoadedModel, name: str = NAME) -> Probe:
    """A probe of answering, from prompts that stand in no dataset here: enough of them to take a threshold from."""
    behavior = [
        {
            "prompt": [{"role": "user", "content": f"{ASKS[number % 3].format(THINGS[number % 6])} ({number}!)"}],
            "undesired": [text.format(THINGS[number % 6]) + f" {number}." for text in ANSWERS],
            "desired": [text.format(THINGS[number % 6]) + f" {number}." for text in REFUSALS],
        }
        for number in range(PROMPTS)
    ]
    return build_from_behavior(
        name, behavior, loaded, BuildConfig(ActivationConfig(LAYERS), layer=3, propose_controls=False)
    )


def audit_of(rows: list[Row], folder: Path, loaded: LoadedModel | None = None) -> Audit:
    """An audit of ``rows`` by that probe; a random model knows no contexts, so it is by responses."""
    loaded = loaded or tiny_loaded()
    return auditor_of(loaded, [answering_probe(loaded)], score="response").audit(rows, folder)
