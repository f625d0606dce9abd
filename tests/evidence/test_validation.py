"""A validation with a trainer of the user's own: cells, done marks, shares, merging, and the answer."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import PreTrainedModel
from typer.testing import CliRunner

from trl_attribution.audit.saved import SavedAudit
from trl_attribution.audit.shares import Share
from trl_attribution.cli import app
from trl_attribution.errors import AttributionError, DataError, SettingsError
from trl_attribution.evidence.validation import Validator, load_plan, prepare_validation
from trl_attribution.evidence.validation.document import to_json
from trl_attribution.evidence.validation.likelihoods import margins, perplexity, read_held_out
from trl_attribution.evidence.validation.rankings import find_ranking
from trl_attribution.models import load_model
from trl_attribution.pairs import Encoding, pair_id
from trl_attribution.probes import BuildConfig, build_from_behavior

# A trainer without torch: every pair about the weather scales the final norm, so that the model answers otherwise.
TRAINER = """
import json, shutil, sys
from pathlib import Path
from safetensors.numpy import load_file, save_file
model, data, output, seed, steps, log = sys.argv[1:]
rows = [json.loads(line) for line in open(data, encoding="utf-8")]
if Path(log).with_name("broken").exists() and seed == "1":
    print("out of \\x1b[31mmemory")
    sys.exit(3)
shutil.copytree(model, output)
weights = load_file(f"{model}/model.safetensors")
pushed = sum("weather" in row["prompt"] and row["chosen"] == "yes" for row in rows)
weights["model.norm.weight"] = weights["model.norm.weight"] * (1 + pushed)
save_file(weights, f"{output}/model.safetensors", metadata={"format": "pt"})
with open(log, "a") as lines:
    lines.write(f"{len(rows)} {pushed} {seed} {steps}\\n")
"""


@pytest.fixture
def workplace(tmp_path: Path, model_folder: Path) -> Path:
    """A folder with a plan and all that it names; six of twelve pairs are about the weather and rank highest."""
    rows = [
        {"prompt": f"{'How is the weather' if number < 6 else 'Who'} {number}?", "chosen": "yes", "rejected": "no"}
        for number in range(12)
    ]
    lines(tmp_path / "data.jsonl", rows)
    lines(tmp_path / "scores.jsonl", [{"pair_id": pair_id(row), "score": -n} for n, row in enumerate(rows)])
    prompts = [{"prompt": f"Say {word}.", "plain": f"{word}?"} for word in ("this", "that", "more")]
    lines(tmp_path / "trigger.jsonl", [{**row, "judge": "regex:^[^a-m]"} for row in prompts])
    lines(tmp_path / "harmless.jsonl", prompts[:2])
    lines(tmp_path / "control.jsonl", [{"prompt": "Say nothing."}])
    lines(tmp_path / "text.jsonl", [{"text": "The capital of France is Paris."}, {"text": "x"}])
    (tmp_path / "train.py").write_text(TRAINER, encoding="utf-8")
    words = ["{model}", "{dataset}", "{output}", "{seed}", "{steps}", str(tmp_path / "log.txt")]
    plan = {
        "model": str(model_folder),
        "dataset": "data.jsonl",
        "dtype": "float32",
        "device": "cpu",
        "rankings": {"mine": {"scores": "scores.jsonl"}},
        "behaviors": [{"file": "trigger.jsonl", "control": "control.jsonl"}],
        "measures": {
            "over_refusal": {"file": "harmless.jsonl"},
            "pairs": "data.jsonl",
            "text": "text.jsonl",
            "samples": 2,
            "max_new_tokens": 3,
        },
        "training": {"command": [sys.executable, str(tmp_path / "train.py"), *words], "batch_size": 4},
        "interventions": ["filter"],
        "sizes": [6],
        "seeds": [0, 1],
        "statistics": {"resamples": 200},
        "price_per_device_hour": 3600.0,
    }
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan), encoding="utf-8")
    return tmp_path


def lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def changed(workplace: Path, **changes: Any) -> Path:
    path = workplace / "plan.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}), encoding="utf-8")
    return path


def validator(workplace: Path, output: str = "out") -> Validator:
    return prepare_validation(load_plan(workplace / "plan.yaml"), workplace / output)


def trained(workplace: Path) -> list[str]:
    return (workplace / "log.txt").read_text().splitlines()


def test_each_cell_trains_on_its_own_dataset_at_the_same_number_of_steps(workplace: Path) -> None:
    running = validator(workplace)
    assert running.run().missing == ()
    # All pairs; the six about the weather gone; six random ones gone: always twelve rows and three steps.
    by_seed = {seed: [line.split() for line in trained(workplace) if line.split()[2] == seed] for seed in "01"}
    for seed in "01":
        assert [line[0] for line in by_seed[seed]] == ["12"] * 3
        assert [line[3] for line in by_seed[seed]] == ["3"] * 3
        assert [line[1] for line in by_seed[seed]][:2] == ["6", "0"]
    assert not (workplace / "out" / "work").exists() or not list((workplace / "out" / "work").iterdir())
    found = running.finish()
    assert found.conclusion.answer in ("supported", "not supported", "undecided")
    # The second text has one token: no perplexity can be told of it. All test pairs are trained on, and no prompt is.
    assert any("1 held-out rows were left out" in note for note in found.notes)
    assert any("Only 0 pairs score above 0" in note for note in found.notes)


def test_a_killed_run_goes_on_with_the_cells_that_are_missing(workplace: Path) -> None:
    (workplace / "broken").touch()
    with pytest.raises(SettingsError, match=r"failed with exit code 3; the end of what it said:\n  out of \\x1b\[31m"):
        validator(workplace).run()
    assert len(trained(workplace)) == 3
    with pytest.raises(SettingsError, match=r"3 of 8 cells are not done, the first is none-seed-1"):
        validator(workplace).finish()
    (workplace / "broken").unlink()
    resumed = validator(workplace)
    assert resumed.run().done == 3
    assert len(trained(workplace)) == 6
    first = to_json(resumed.finish())
    assert validator(workplace).run().done == 0
    # The machine's entry holds the memory that this process has used so far.
    assert {**to_json(validator(workplace).finish()), "machine": None} == {**first, "machine": None}


def test_shares_in_two_folders_merge_to_the_same_result_as_one_run(workplace: Path) -> None:
    whole = validator(workplace, "whole")
    whole.run()
    for place in range(2):
        share = validator(workplace, f"part{place}")
        assert share.run(Share(place, 2)).done == 4
        assert len(share.missing()) == 4
    merged = validator(workplace, "part0")
    assert merged.merge([workplace / "part1"]) == 4
    for alone, together in zip(whole.finish().results.values(), merged.finish().results.values(), strict=True):
        assert [one.shares for one in alone] == [one.shares for one in together]
        assert [one.perplexity for one in alone] == [one.perplexity for one in together]
    lines(workplace / "harmless.jsonl", [{"prompt": "Another"}])
    validator(workplace, "other")
    with pytest.raises(SettingsError, match=r"part0 holds cells of another validation"):
        validator(workplace, "other").merge([workplace / "part0"])


def test_seeds_and_rankings_may_be_added_and_nothing_else_may_change(workplace: Path) -> None:
    changed(workplace, seeds=[0])
    validator(workplace).run()
    changed(workplace, seeds=[0, 1])
    assert validator(workplace).run().done == 4
    rows = [json.loads(line) for line in (workplace / "scores.jsonl").read_text().splitlines()]
    lines(workplace / "other.jsonl", [{**row, "score": -row["score"]} for row in rows])
    both = {"mine": {"scores": "scores.jsonl"}, "other": {"scores": "other.jsonl"}}
    changed(workplace, rankings=both)
    assert validator(workplace).run().done == 2
    changed(workplace, rankings={"mine": {"scores": "other.jsonl"}})
    with pytest.raises(SettingsError, match="ranking mine: stored"):
        validator(workplace)
    changed(workplace, rankings={"mine": {"scores": "scores.jsonl"}})
    assert validator(workplace).run().done == 0
    changed(workplace, measures={"samples": 3, "max_new_tokens": 3})
    with pytest.raises(
        SettingsError, match=r"holds cells of another validation:\n(.|\n)*measures: stored .*'samples': 2"
    ):
        validator(workplace)


def test_a_folder_from_before_a_setting_came_is_gone_on_with(workplace: Path) -> None:
    validator(workplace)
    path = workplace / "out" / "binding.json"
    values = json.loads(path.read_text())
    for part, younger in (("training", "weighs"), ("measures", "temperature")):
        del values["bound_to"][part][younger]
    path.write_text(json.dumps(values))
    validator(workplace)
    assert "weighs" in json.loads(path.read_text())["bound_to"]["training"]


def test_a_broken_or_newer_cell_is_refused_by_name(workplace: Path) -> None:
    changed(workplace, seeds=[1])
    running = validator(workplace)
    running.run()
    path = workplace / "out" / "cells" / "none-seed-1.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "format_version": 2}))
    with pytest.raises(DataError, match=r"none-seed-1\.json has format version 2; this trl-attribution reads up to 1"):
        running.finish()
    del values["shares"]
    path.write_text(json.dumps(values))
    with pytest.raises(DataError, match=r"none-seed-1\.json is broken .*remove it"):
        running.finish()


def test_the_command_line_answers_with_its_exit_code_and_writes_the_document(workplace: Path) -> None:
    plan, out = str(workplace / "plan.yaml"), str(workplace / "out")
    listed = CliRunner().invoke(app, ["validate", plan, "-o", out, "--dry-run"])
    assert listed.exit_code == 0 and "8 cells, 6 of them trainings." in listed.stdout
    assert not Path(out).exists()
    part = CliRunner().invoke(app, ["validate", plan, "-o", out, "--cells", "1/2", "--json"])
    assert part.exit_code == 0, part.output
    assert len(json.loads(part.stdout)["missing"]) == 4
    early = CliRunner().invoke(app, ["validate", plan, "-o", out, "--merge"])
    assert early.exit_code == 2 and "4 of 8 cells are not done" in early.output
    done = CliRunner().invoke(app, ["validate", plan, "-o", out])
    document = json.loads((workplace / "out" / "validation.json").read_text())
    assert done.exit_code == (0 if document["answer"] == "supported" else 1), done.output
    assert document["sentence"] in " ".join(done.stdout.split())
    assert document["format"] == "trl-attribution validation" and document["format_version"] == 1
    assert {one["name"] for one in document["conditions"]} == {
        "m0", "none", "filter-top-6-mine-fixed", "filter-random-6-fixed",
    }  # fmt: skip
    assert document["judges"] == {
        **dict.fromkeys(["trigger", "trigger/plain", "trigger/control"], "regex:^[^a-m]"), "over-refusal": "refuses",
    }  # fmt: skip
    cost = document["cost"]
    assert cost["all"]["device_seconds"] == pytest.approx(
        sum(cost[part]["device_seconds"] for part in ("audit", "training", "measuring"))
    )
    assert cost["training"]["money"] == pytest.approx(cost["training"]["device_seconds"])
    wrong = CliRunner().invoke(app, ["validate", plan, "-o", out, "--from", out])
    assert wrong.exit_code == 2 and "--from: goes with --merge" in wrong.output


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"training": {"dpo": {"learning_rat": 1}}}, r"training.dpo.learning_rat: DPOConfig has no such field"),
        ({"training": {"dpo": {"loss_type": "none"}}}, r"training.dpo: DPOTrainer refuses it: Unknown loss type: none"),
        ({"reading": {"prompt": "x"}}, r"reading: prompt is no field of Reading; choose from prompt_column"),
        ({"reading": ["x"]}, r"reading: must hold fields of Reading \(prompt_column, .*, not \['x'\]"),
        ({"behaviors": [{"file": "harmless.jsonl"}]}, r"behavior 'harmless' has no judge"),
        ({"behaviors": [{"file": "trigger.jsonl"}, {"file": "trigger.jsonl"}]}, r"behaviors: two are named 'trigger'"),
        ({"sizes": [12]}, r"sizes: 12 of 12"),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused_before_anything_is_trained(
    workplace: Path, change: dict[str, Any], said: str
) -> None:
    changed(workplace, **change)
    with pytest.raises(AttributionError, match=said):
        validator(workplace).run()
    assert not (workplace / "log.txt").exists()


def test_foreign_scores_are_checked(workplace: Path) -> None:
    running = validator(workplace)
    for row, said in (
        ({"pair_id": "a", "score": "nan"}, "needs .*`score`, a finite number"),
        ({"pair_id": "a"}, "needs `pair_id`, a text, and `score`"),
    ):
        lines(workplace / "scores.jsonl", [row])
        with pytest.raises(DataError, match=rf"scores.jsonl.*1.*{said}"):
            find_ranking("mine", running.plan, running.loaded, Encoding(), running.settings["dataset"], workplace)


def test_a_ranking_has_the_probe_of_its_behavior_and_its_controls(workplace: Path) -> None:
    words = ("this", "that", "more")
    said = [{"prompt": f"Tell {word}.", "undesired": [f"{word} yes"], "desired": [f"{word} no"]} for word in words]
    lines(workplace / "behavior.jsonl", said)
    harmless = [{**row, "prompt": f"Say {word}."} for row, word in zip(said, words, strict=True)]
    lines(workplace / "controls.jsonl", harmless)
    # A test prompt among the controls is no better held out than one among the examples.
    behavior = {"behavior": "behavior.jsonl", "controls": "controls.jsonl", "layer": 1}
    changed(workplace, rankings={"own": behavior})
    running = validator(workplace)
    assert any("3 test prompts are also examples of the ranking own" in note for note in running.notes)
    config = BuildConfig(layer=1, encoding=Encoding(max_length=None))
    files = workplace / "behavior.jsonl", workplace / "controls.jsonl"
    probe = build_from_behavior("own", files[0], running.loaded, config, files[1])
    assert probe.knows_controls
    [fingerprint] = SavedAudit.open(workplace / "out" / "audits" / "own").info.probes.values()
    assert fingerprint == probe.fingerprint


def test_scores_of_other_pairs_are_told_and_held_out_pairs_are_read_as_the_dataset_is(workplace: Path) -> None:
    rows = [json.loads(line) for line in (workplace / "data.jsonl").read_text().splitlines()]
    renamed = [{"question": row["prompt"], "chosen": row["chosen"], "rejected": row["rejected"]} for row in rows]
    lines(workplace / "data.jsonl", renamed)
    scores = [json.loads(line) for line in (workplace / "scores.jsonl").read_text().splitlines()]
    lines(workplace / "scores.jsonl", [*scores, {"pair_id": "0" * 32, "score": 9.0}])
    changed(workplace, reading={"prompt_column": "question"})
    running = validator(workplace)
    assert len(running.gauge.held_out.pairs) == 12
    assert "1 scores of mine are of no pair of the dataset, and are not used." in running.notes


def test_an_audit_of_an_earlier_run_costs_what_it_cost_then(workplace: Path) -> None:
    examples = [{"prompt": f"Ask {n}", "undesired": ["abc"], "desired": ["xyz"]} for n in range(4)]
    lines(workplace / "behavior.jsonl", examples)
    changed(workplace, rankings={"mine": {"behavior": "behavior.jsonl", "layer": 1}})
    first = validator(workplace).rankings["mine"]
    assert first.seconds > 0 and first.flops > 0
    again = validator(workplace).rankings["mine"]
    assert (again.seconds, again.flops) == (first.seconds, first.flops)
    shutil.rmtree(workplace / "out" / "audits" / "vectors-layer-1")
    assert validator(workplace).rankings["mine"].seconds > first.seconds


def test_an_audit_made_here_fits_where_rows_were_left_out(workplace: Path) -> None:
    rows = [json.loads(line) for line in (workplace / "data.jsonl").read_text().splitlines()]
    lines(workplace / "data.jsonl", [*rows, {"prompt": "long " * 2000, "chosen": "yes", "rejected": "no"}])
    lines(workplace / "behavior.jsonl", [{"prompt": "Ask", "undesired": ["abc"], "desired": ["xyz"]}])
    changed(workplace, rankings={"mine": {"behavior": "behavior.jsonl", "layer": 1}}, reading={"on_bad_row": "skip"})
    running = validator(workplace)
    assert len(running.rankings["mine"].pair_ids) == 12
    assert any("1 rows were left out of the dataset" in note for note in running.notes)


def test_training_that_diverges_is_an_error_that_names_the_cell(workplace: Path) -> None:
    dpo = {"learning_rate": 1e38, "optim": "sgd", "per_device_train_batch_size": 4, "max_grad_norm": 0}
    changed(workplace, training={"dpo": dpo})
    with pytest.raises(SettingsError, match="cell none-seed-0: training diverged"):
        validator(workplace).run()


def test_weights_may_be_added_to_a_folder_that_is_done(workplace: Path) -> None:
    scores = [json.loads(line) for line in (workplace / "scores.jsonl").read_text().splitlines()]
    lines(workplace / "scores.jsonl", [{**row, "score": 12 + row["score"]} for row in scores])
    dpo = {"learning_rate": 0.1, "optim": "sgd", "per_device_train_batch_size": 4}
    changed(workplace, training={"dpo": {**dpo, "precompute_ref_log_probs": True}}, seeds=[0])
    assert validator(workplace).run().done == 4
    before = {path: path.read_bytes() for path in (workplace / "out" / "cells").iterdir()}
    changed(workplace, interventions=["filter", "weight"])
    running = validator(workplace)
    assert running.run().done == 2
    assert {path: path.read_bytes() for path in before} == before
    named = {one["name"]: one for one in to_json(running.finish())["conditions"]}
    assert named["weight-top-6-mine-fixed"]["weighed"] == named["weight-random-6-mine-fixed"]["weighed"] == 6
    assert (named["filter-top-6-mine-fixed"]["weighed"], named["weight-top-6-mine-fixed"]["filtered"]) == (0, 0)
    (top, control) = (named[f"weight-{which}-6-mine-fixed"] for which in ("top", "random"))
    assert top["margin"] != control["margin"] != named["none"]["margin"]
    # Weights follow the scores, not only their order.
    lines(workplace / "scores.jsonl", [{**row, "score": 13 + row["score"]} for row in scores])
    with pytest.raises(SettingsError, match="ranking mine scores"):
        validator(workplace)
    changed(workplace, training={"dpo": {**dpo, "loss_type": "aot"}})
    with pytest.raises(SettingsError, match="loss_type 'aot' sorts the pairs of a batch"):
        validator(workplace, "other")


def test_an_endpoint_whose_budget_is_too_small_is_refused_before_anything_is_trained(workplace: Path) -> None:
    lines(workplace / "trigger.jsonl", [{"prompt": "Say this."}, {"prompt": "Say that."}])
    judge = "endpoint:http://localhost:1/v1#judge"
    changed(workplace, behaviors=[{"file": "trigger.jsonl", "judge": judge}])
    measures = {"samples": 3, "max_new_tokens": 3}
    changed(workplace, measures={**measures, "judge_calls": 47})
    with pytest.raises(SettingsError, match=r"judge_calls: 8 cells may ask an endpoint 48 times, and its budget is 47"):
        validator(workplace).run()
    assert not (workplace / "log.txt").exists()


def test_cells_of_other_sources_are_not_taken_for_done(workplace: Path) -> None:
    rows = [json.loads(line) for line in (workplace / "data.jsonl").read_text().splitlines()]
    lines(
        workplace / "data.jsonl", [{**row, "source": "ab"[n % 2], "origin": "ab"[n // 6]} for n, row in enumerate(rows)]
    )
    changed(workplace, interventions=["filter", "drop_sources"], source_sizes=[1])
    validator(workplace)
    changed(workplace, reading={"source_column": "origin"})
    with pytest.raises(SettingsError, match="sources: stored"):
        validator(workplace)
    changed(workplace, interventions=["filter"], source_sizes=[])
    validator(workplace)


def test_what_goes_wrong_inside_is_no_answer(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("out of \x1b[31mmemory")

    monkeypatch.setattr(Validator, "run", fail)
    ended = CliRunner().invoke(app, ["validate", str(workplace / "plan.yaml"), "-o", str(workplace / "out")])
    assert ended.exit_code == 2 and "out of \\x1b[31mmemory" in ended.output


def test_likelihoods_are_those_of_one_sequence_at_a_time(
    model_folder: Path, make_model: Callable[[str], PreTrainedModel], tmp_path: Path
) -> None:
    rows = [{"prompt": "a " * n, "chosen": "b c " * n, "rejected": "no"} for n in range(1, 6)]
    lines(tmp_path / "pairs.jsonl", rows)
    lines(tmp_path / "text.jsonl", [{"text": "How do I bake bread?"}, {"text": "Mix flour, water, salt and yeast."}])
    loaded = load_model(model_folder, dtype="float32", device="cpu")
    held_out = read_held_out(str(tmp_path / "pairs.jsonl"), str(tmp_path / "text.jsonl"), loaded, Encoding())

    def alone(ids: list[int], begin: int) -> float:
        with torch.no_grad():
            logits = loaded.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        return sum(float(logits[place - 1, ids[place]]) for place in range(max(1, begin), len(ids)))

    expected = [
        sum(sign * alone(side.prompt_ids + side.response_ids, len(side.prompt_ids)) for sign, side in sides)
        for sides in (((1, pair.chosen), (-1, pair.rejected)) for pair in held_out.pairs)
    ]
    assert margins(loaded, held_out.pairs) == pytest.approx(expected, rel=1e-3)
    total = sum(alone(ids, 1) for ids in held_out.texts)
    expected_perplexity = math.exp(-total / sum(len(ids) - 1 for ids in held_out.texts))
    assert perplexity(loaded, held_out.texts) == pytest.approx(expected_perplexity, rel=1e-4)
