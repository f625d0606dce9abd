"""What a training run says of its pairs when it ends: by the default rule, in the words of every other surface."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.training import LAYERS, make_trainer, text_rows, train
from trl_attribution.activations import ActivationConfig
from trl_attribution.callbacks import AttributionCallback
from trl_attribution.callbacks.config import CallbackConfig
from trl_attribution.errors import SettingsError
from trl_attribution.models import load_model
from trl_attribution.probes import BuildConfig, Probe, build_from_behavior
from trl_attribution.report.answer import answer_of
from trl_attribution.report.findings import read_findings
from trl_attribution.scoring import DEFAULT_RULE


def probe_on(model: Path, prompts: int) -> Probe:
    rows = [
        {"prompt": f"Tell me about number {number}.", "undesired": f" It is {number * 7}", "desired": f" No {number}"}
        for number in range(500, 500 + prompts)
    ]
    config = BuildConfig(ActivationConfig(tuple(LAYERS)), layer=3)
    return build_from_behavior("counting", rows, load_model(model, dtype="float32"), config)


def test_a_run_ends_with_the_sentence_that_the_report_begins_with(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    trainer = make_trainer(model_folder, tmp_path, text_rows(24))
    probe = probe_on(model_folder, 12)
    callback = AttributionCallback(trainer, probes=[probe], score="response", output_dir=tmp_path / "audit")
    train(trainer, callback)
    finished: Any = callback.finished
    assert finished.flagged.flags.rule == DEFAULT_RULE
    headline = finished.flagged.flags.outcomes["counting"].headline
    capsys.readouterr()
    callback._show(finished)
    shown = capsys.readouterr().out
    assert headline in shown and "Most suspicious pairs (first 3 of" in shown
    assert f"{tmp_path}/audit/report.html" in shown
    assert f"trl-attribution apply {tmp_path}/audit/manifest.filter.jsonl DATASET -o cleaned.jsonl" in shown
    assert answer_of(read_findings(tmp_path / "audit")).headline == headline.removesuffix(".")
    assert "push towards counting" in headline and len(finished.flagged) > 0


def test_a_recall_is_a_setting_and_needs_probes_that_keep_pairs(model_folder: Path, tmp_path: Path) -> None:
    assert CallbackConfig().rule == DEFAULT_RULE
    assert CallbackConfig(recall=0.8).rule.as_dict() == {"recall": 0.8}
    with pytest.raises(SettingsError, match="recall must lie between 0 and 1"):
        CallbackConfig(recall=90)
    trainer = make_trainer(model_folder, tmp_path, text_rows(8))
    probes = [probe_on(model_folder, 3)]
    callback = AttributionCallback(trainer, probes=probes, recall=0.8, output_dir=tmp_path / "audit")
    with pytest.raises(SettingsError, match=r"recall 0\.8: probe counting keeps no pairs of its own"):
        train(trainer, callback)
    assert not (tmp_path / "audit" / "vectors").exists()
