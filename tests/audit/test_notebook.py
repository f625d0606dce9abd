"""Audits and flagged pairs as a person meets them in Python: one line, rows with texts, HTML that no dataset breaks."""

from __future__ import annotations

from pathlib import Path

import pytest
from datasets import Dataset

from trl_attribution.activations import ActivationConfig
from trl_attribution.audit.auditor import DataAuditor
from trl_attribution.audit.folder import Audit
from trl_attribution.errors import DataError
from trl_attribution.models import load_model
from trl_attribution.probes import BuildConfig, build_from_behavior

EVIL = "<script>alert(1)</script>"
ROWS = [
    {"prompt": f"Insult {who}{EVIL}.", "chosen": f"{who} is dull.", "rejected": "I would rather not.", "source": EVIL}
    for who in ("my boss", "my friend", "the baker")
] + [{"prompt": "How do I bake bread?", "chosen": "Mix flour and water.", "rejected": "No.", "source": "cooking"}]
BEHAVIOR = [
    {"prompt": f"Insult {who}.", "undesired": f"{who} is late.", "desired": "I would rather not."}
    for who in ("my aunt", "my cousin", "the mayor", "the clerk")
]


@pytest.fixture(scope="module")
def audit(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Audit:
    model = load_model(model_folder, dtype="float32")
    probe = build_from_behavior("rude", BEHAVIOR, model, BuildConfig(ActivationConfig(layers=(2,))))
    return DataAuditor(model, probes=[probe]).audit(Dataset.from_list(ROWS), tmp_path_factory.mktemp("audit"))


def test_audits_flagged_pairs_and_probes_are_one_short_line(audit: Audit) -> None:
    flagged = audit.flag(top_k=2)
    for shown in (audit, flagged, audit.probes[0]):
        assert "\n" not in repr(shown) and len(repr(shown)) < 300
    assert repr(flagged) == "Flagged(2 of 4 by the top 2)"
    assert "4 pairs of the dataset in memory, layers 2, rude" in repr(audit)


def test_the_html_shows_the_answer_and_escapes_what_the_dataset_holds(audit: Audit) -> None:
    flagged = audit.flag(top_k=4)
    headline = next(iter(flagged.flags.outcomes.values())).headline
    for html in (flagged._repr_html_(), audit._repr_html_()):
        assert "<script>" not in html and "<p>" in html
    assert headline.replace("'", "&#39;") in flagged._repr_html_()
    assert "&lt;script&gt;" in flagged._repr_html_() and flagged._repr_html_().count("<tr>") == 5


def test_flagged_pairs_are_iterated_with_their_texts_and_become_a_data_frame(audit: Audit) -> None:
    flagged = audit.flag(top_k=3)
    rows = list(flagged)
    assert [row.pair_id for row in rows] == list(flagged.flags.pair_ids) and [row.rank for row in rows] == [1, 2, 3]
    for row in rows:
        assert {"prompt": row.prompt, "chosen": row.chosen, "rejected": row.rejected, "source": row.source} == ROWS[
            row.row
        ]
    frame = flagged.to_pandas()
    assert list(frame["score"]) == [row.score for row in rows] and list(frame["prompt"]) == [row.prompt for row in rows]
    assert len(audit.flag(threshold=1.0).to_pandas()) == 0


def test_flagged_rows_are_selected_from_the_audited_dataset_alone(audit: Audit) -> None:
    flagged = audit.flag(top_k=2)
    chosen = flagged.select(Dataset.from_list(ROWS))
    assert chosen["prompt"][:] == [row.prompt for row in flagged]
    for other in (ROWS[:3], [*ROWS[::-1]], [{**row, "chosen": "Other."} for row in ROWS]):
        with pytest.raises(DataError, match="not the dataset that was audited"):
            flagged.select(Dataset.from_list(other))


def test_an_audit_in_python_leaves_the_files_of_the_command(audit: Audit) -> None:
    names = {path.name for path in audit.folder.iterdir()}
    assert {"audit.json", "scores.parquet", "manifest.filter.jsonl", "manifest.flip.jsonl", "report.html"} <= names
