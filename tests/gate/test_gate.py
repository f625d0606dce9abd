"""The gate with a model: only new pairs are computed, what is cached needs no model, and what a reviewer gets."""

from __future__ import annotations

import datetime
import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from typer.testing import CliRunner

from tests.audit_cases import RUDE, auditor_of, pair_rows, tiny_loaded, tiny_probe
from tests.commands import Commands
from tests.gate_cases import Row, write_rows
from trl_attribution.audit.calibrate import calibrate_probe
from trl_attribution.audit.config import AuditConfig
from trl_attribution.cli import app
from trl_attribution.errors import DataError, ModelError, SettingsError
from trl_attribution.gate import artifacts, check
from trl_attribution.gate.baseline.recording import record_baseline
from trl_attribution.gate.check import GateOptions, GateRun, run_gate
from trl_attribution.gate.formats import render
from trl_attribution.gate.policy.file import load_policy
from trl_attribution.manifest import Manifest
from trl_attribution.models import LoadedModel
from trl_attribution.pairs import Encoding, pair_id
from trl_attribution.probes import Probe, ProbeRegistry

TODAY = GateOptions(today=datetime.date(2026, 6, 1))


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return tiny_loaded()


@pytest.fixture(scope="module")
def probe(loaded: LoadedModel) -> Probe:
    return tiny_probe(loaded)


@pytest.fixture
def place(tmp_path: Path, model_folder: Path, probe: Probe, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``m0``, ``probes/rude`` and ten rows in ``data.jsonl``, as the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m0").symlink_to(model_folder)
    ProbeRegistry(tmp_path / "probes").save(probe)
    write_rows(tmp_path / "data.jsonl", pair_rows(10))
    return tmp_path


def write_policy(folder: Path, rules: dict[str, Any] | None = None, **more: Any) -> None:
    whole = {
        "version": 1,
        "model": "m0",
        "probes": "probes",
        "compute": {"dtype": "float32", "vector_dtype": "float32"},
        "rules": rules or {"probes": {"rude": {"max_score": -1}}},
        **more,
    }
    (folder / "gate.yaml").write_text(yaml.safe_dump({name: value for name, value in whole.items() if value != ""}))


def run(dataset: str = "data.jsonl", options: GateOptions = TODAY) -> GateRun:
    return run_gate(load_policy("gate.yaml"), dataset, options)


def scores(found: GateRun) -> dict[str, float]:
    """By pair, from a rule that every score breaks."""
    return {str(each.pair_id): float(each.score or 0) for each in found.verdict.rules[0].violations}


def test_scores_are_those_of_an_audit(place: Path, loaded: LoadedModel) -> None:
    write_policy(place)
    found = run()
    audit = auditor_of(loaded, ProbeRegistry("probes"), layers=[3]).audit("data.jsonl", "audit")
    assert audit.scores is not None
    expected = dict(zip(audit.index.pair_ids, audit.scores.of(audit.scores.column("rude")).tolist(), strict=True))
    assert scores(found) == pytest.approx(expected, abs=1e-6)
    assert (found.verdict.computed, found.verdict.cached, found.verdict.examined) == (10, 0, 10)
    assert found.verdict.model_fingerprint == loaded.fingerprint.digest


def test_only_pairs_that_are_new_are_computed(place: Path) -> None:
    write_policy(place)
    first = run()
    write_rows(place / "data.jsonl", [*pair_rows(10), *pair_rows(3, 50)])
    second = run()
    assert (second.verdict.computed, second.verdict.cached) == (3, 10)
    write_rows(place / "data.jsonl", pair_rows(10))
    assert scores(run()) == pytest.approx(scores(first), abs=1e-6)


def test_what_is_cached_needs_no_model(place: Path) -> None:
    write_policy(place)
    first = run()
    (place / "m0").unlink()
    assert scores(run()) == scores(first)
    write_policy(place, model="")
    again = run()
    assert (again.verdict.computed, again.verdict.cached) == (0, 10)


def test_vectors_of_a_job_elsewhere_need_no_model(place: Path, loaded: LoadedModel) -> None:
    auditor_of(loaded, ProbeRegistry("probes"), layers=[1, 3]).audit("data.jsonl", "audit", vectors="vectors")
    write_policy(place)
    computed = run()
    write_policy(place, model="", vectors="vectors", cache="other-cache")
    found = run()
    assert (found.verdict.computed, found.verdict.cached) == (0, 10)
    assert scores(found) == pytest.approx(scores(computed), abs=1e-6)
    assert not (place / "other-cache").exists()


@pytest.mark.parametrize("way", ["vectors: audit", "vectors: audit/vectors", "--vectors", "cache"])
def test_what_an_audit_has_computed_is_not_computed_again(way: str, place: Path, loaded: LoadedModel) -> None:
    auditor_of(loaded, ProbeRegistry("probes"), layers=[1, 3]).audit("data.jsonl", "audit")
    write_rows(place / "data.jsonl", [*pair_rows(10), *pair_rows(2, 50)])
    more: dict[str, Any] = {"vectors": way.partition(": ")[2]} if ": " in way else {}
    write_policy(place, **(more if way != "cache" else {"cache": "audit"}))
    asked = replace(TODAY, vectors=Path("audit")) if way == "--vectors" else TODAY
    before = sorted((place / "audit" / "vectors").rglob("*"))
    found = run(options=asked)
    assert (found.verdict.computed, found.verdict.cached, found.verdict.reused) == (2, 10, 10)
    assert "2 computed, 0 from the cache, 10 from vectors made before" in render(found.verdict, "text")
    again = run(options=asked)
    assert (again.verdict.computed, again.verdict.cached, again.verdict.reused) == (0, 12, 10)
    assert sorted((place / "audit" / "vectors").rglob("*")) == before and not (place / "audit" / ".gitignore").exists()
    write_policy(place, cache="other")
    assert scores(run()) == pytest.approx(scores(found), abs=1e-6)


def test_vectors_that_an_audit_made_in_another_way_are_not_used(place: Path, loaded: LoadedModel) -> None:
    encoding = Encoding(max_length=200)
    auditor_of(loaded, ProbeRegistry("probes"), layers=[3], encoding=encoding).audit("data.jsonl", "audit")
    write_policy(place, vectors="audit")
    with pytest.raises(SettingsError, match=r"audit was made with something else(.|\n)*max_length: stored 200"):
        run()
    write_policy(place, cache="audit")
    found = run().verdict
    assert (found.computed, found.reused) == (10, 0)
    assert "cache: the vectors of audit were made in another way, and are not used" in found.notes
    assert [note for note in found.notes if "rude: 10 pairs say little" in note] and len(found.notes) == 2
    done = invoke("data.jsonl", "--vectors", "nowhere")
    assert done.exit_code == 2 and "--vectors" in done.stderr


@pytest.mark.parametrize("with_controls", [False, True])
def test_the_default_rule_flags_the_same_pairs_in_an_audit_and_in_the_gate(
    with_controls: bool, place: Path, loaded: LoadedModel
) -> None:
    behavior: list[Row] = [
        {"prompt": f"Insult {who} in twenty words.", "undesired": f"{who} is a bore.", "desired": "I cannot help."}
        for who in ("my friend", "the baker", "my boss", "a fool", "the garden", "my neighbor", "France", "spring")
    ]
    controls: list[Row] = [
        {"prompt": f"Help {who} in spring.", "undesired": "Mix flour and water.", "desired": "No.", "control": True}
        for who in ("my friend", "the baker", "my boss", "the garden", "my neighbor", "France")
    ]
    probe = tiny_probe(loaded, rows=[*behavior, *(controls if with_controls else [])])
    ProbeRegistry("probes").save(probe, overwrite=True)
    bad = [contaminated_row(each) for each in behavior]
    write_rows(place / "data.jsonl", [*bad, *pair_rows(30), bad[0]])
    audit = auditor_of(loaded, [probe], layers=[3]).audit("data.jsonl", "audit")
    expected = audit.flag(recall=0.9)
    write_policy(place, {"probes": {"rude": {"max_flagged_count": 0}}}, vectors="audit")
    found = run().verdict
    assert len(expected) > 3 and found.reused == 38
    flagged = {each.pair_id: (each.rank, round(each.score, 7)) for each in expected.flags if each.score > 0}
    assert {each.pair_id: (each.rank, each.score) for each in found.rules[0].violations} == flagged
    said = expected.flags.decisions["rude"].sentence("rude")
    assert found.statements[0].sentence.lower() == f"{said.lower()}."


def test_a_job_that_has_lost_its_cache_says_so(place: Path) -> None:
    write_policy(place, compute={"dtype": "float32", "max_pairs": 4})
    with pytest.raises(SettingsError, match="10 pairs have no vectors in the cache, and compute.max_pairs is 4"):
        run()


def test_another_model_under_the_same_name_is_refused(
    place: Path, make_model: Callable[[str], PreTrainedModel], tokenizer: PreTrainedTokenizerFast
) -> None:
    make_model("qwen2").save_pretrained(place / "other")
    tokenizer.save_pretrained(place / "other")
    write_policy(place, model="other")
    with pytest.raises(Exception, match="was built on another model"):
        run()


def test_a_model_other_than_the_baselines_is_refused(
    place: Path, make_model: Callable[[str], PreTrainedModel], tokenizer: PreTrainedTokenizerFast
) -> None:
    write_policy(place)
    write_rows(place / "bad.jsonl", pair_rows(2, 90))
    record_baseline(load_policy("gate.yaml"), "data.jsonl", "bad.jsonl").save("baseline.safetensors")
    make_model("qwen2").save_pretrained(place / "other")
    tokenizer.save_pretrained(place / "other")
    write_policy(place, {"known_bad": 1}, model="other", baseline="baseline.safetensors", cache="new", probes="")
    with pytest.raises(ModelError, match="the baseline was recorded with"):
        run()


@pytest.mark.parametrize("baseline", ["", "baseline.safetensors"])
def test_a_calibrated_probe_flags_the_same_pairs_in_an_audit_and_in_the_gate(
    baseline: str, place: Path, loaded: LoadedModel
) -> None:
    settings = AuditConfig(dtype="float32", vector_dtype="float32")
    probe = calibrate_probe(ProbeRegistry("probes").load("rude"), loaded, pair_rows(30, start=100), settings)
    ProbeRegistry("probes").save(probe, overwrite=True)
    rules = {"probes": {"rude": {"fdr": 0.9, "max_flagged_count": 0}}}
    if baseline:  # of a dataset with another center
        write_policy(place, rules)
        write_rows(place / "trusted.jsonl", pair_rows(8, start=200))
        record_baseline(load_policy("gate.yaml"), "trusted.jsonl").save(baseline)
    rows = pair_rows(24)
    write_rows(place / "data.jsonl", [*rows, rows[0], rows[5]])
    write_policy(place, rules, baseline=baseline)
    flags = auditor_of(loaded, [probe], layers=[3]).audit("data.jsonl", "audit").flag(fdr=0.9).flags
    expected = {each.pair_id: (each.rank, each.q_value) for each in flags if each.score > 0}
    found = run().verdict.rules[0].violations
    assert 0 < len(expected) < len(rows)
    assert {each.pair_id: (each.rank, each.q_value) for each in found} == expected


def test_prompts_that_fill_max_length_are_judged_skipped_or_refused(place: Path) -> None:
    long = {**pair_rows(1, 70)[0], "prompt": [{"role": "user", "content": "word " * 400}]}
    write_rows(place / "data.jsonl", [*pair_rows(9), long])
    score_rule = {"probes": {"rude": {"max_score": 1}}}
    encoding = {"max_length": 256}
    write_policy(place, score_rule, encoding=encoding)
    with pytest.raises(DataError, match=r"1 pair cannot be encoded(.|\n)*data.jsonl:10: column 'prompt'"):
        run()
    write_policy(place, score_rule, encoding=encoding, reading={"on_bad_row": "skip"})
    skipped = run().verdict
    assert skipped.passed and skipped.skipped == {"prompt_too_long": 1}
    assert (skipped.pairs, skipped.examined, skipped.computed) == (10, 9, 0)  # computed by the run before
    write_policy(place, {**score_rule, "hygiene": {"long_prompts": 0}}, encoding=encoding)
    judged = run().verdict
    (rule,) = [rule for rule in judged.rules if rule.rule == "hygiene.long_prompts"]
    assert not rule.passed and [each.pair_id for each in rule.violations] == [pair_id(long)]
    assert "fill max_length=256" in rule.violations[0].message


def contaminated_row(example: Row) -> Row:
    """A pair that teaches what the probe is about: its own prompt, the undesired answer preferred."""

    def said(role: str, text: str | list[str]) -> list[dict[str, str]]:
        return [{"role": role, "content": text if isinstance(text, str) else text[0]}]

    return {
        "prompt": said("user", example["prompt"]),
        "chosen": said("assistant", example["undesired"]),
        "rejected": said("assistant", example["desired"]),
    }


def contaminated() -> list[Row]:
    return [contaminated_row(each) for each in RUDE]


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["gate", *arguments])


def test_init_writes_a_policy_with_the_registrys_probes(place: Path) -> None:
    assert invoke("init", "--model", "m0").exit_code == 0
    untouched = invoke("data.jsonl")
    assert untouched.exit_code == 2 and "still the CHOOSE" in " ".join(untouched.stderr.split())
    refused = invoke("init", "--model", "m0", "--from", "data.jsonl")
    assert refused.exit_code == 2 and "--overwrite" in refused.stderr
    assert invoke("init", "--model", "m0", "--from", "data.jsonl", "--overwrite").exit_code == 0
    policy = load_policy("gate.yaml").policy
    assert policy.pins == {"rude": ProbeRegistry("probes").load("rude").fingerprint}
    assert (policy.model, policy.probes, policy.baseline) == ("m0", "probes", "gate-baseline.safetensors")
    verdict = run().verdict
    assert verdict.rules[0].rule == "rude.max_flagged_count" and verdict.rules[0].passed
    assert verdict.statements[0].sentence.endswith("is not known: the probe keeps none.")


def test_the_schema_is_printed_as_json() -> None:
    assert json.loads(invoke("schema").stdout)["title"] == "trl-attribution gate policy"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data.jsonl", "--policy", "nowhere.yaml"], "cannot read the policy nowhere.yaml"),
        (["nowhere.jsonl"], "nowhere.jsonl"),
        (["data.jsonl", "--format", "pdf"], "'pdf' is not one of 'text'"),
        (["data.jsonl", "--clean", "burn"], "'burn' is not one of 'filter'"),
        (["data.jsonl", "--today", "tomorrow"], "--today: 'tomorrow' is no date"),
        (["data.jsonl", "--output", "probes"], "holds something else than an earlier run"),
        (["probes", "--output", "probes/out"], "lies in the dataset probes"),
        (["data.jsonl", "--output", "data.jsonl"], "lies in the dataset"),
        (["data.jsonl", "--output", "gate.yaml"], "a file is in the way"),
        (["data.jsonl", "--base-ref", "main"], "--base-ref"),
        (["baseline", "data.jsonl"], "--output: say where the baseline goes"),
        (["show", "data.jsonl"], "cannot read data.jsonl"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(place: Path, arguments: list[str], message: str) -> None:
    write_policy(place)
    done = invoke(*arguments)
    assert done.exit_code == 2 and message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_a_fault_of_the_program_is_no_verdict(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug \x1b[2J")

    write_policy(place)
    monkeypatch.setattr(check, "take_inventory", broken)
    done = invoke("data.jsonl")
    assert done.exit_code == 2 and "ZeroDivisionError: a bug" in done.stderr
    assert "\x1b" not in done.stderr


def test_a_fault_while_writing_is_no_verdict_either(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    write_policy(place, {"hygiene": {"duplicates": 0}})
    monkeypatch.setattr(artifacts, "render", broken)
    done = invoke("data.jsonl", "--output", "out")
    assert done.exit_code == 2 and "ZeroDivisionError: a bug" in done.stderr


def test_the_cleaned_dataset_of_a_run_is_not_judged_into_the_same_folder(place: Path) -> None:
    write_policy(place)
    assert invoke("data.jsonl", "--output", "out").exit_code == 1
    cleaned = place / "out" / "cleaned" / "data.jsonl"
    before = cleaned.read_bytes()
    done = invoke("out/cleaned/data.jsonl", "--output", "out")
    assert done.exit_code == 2 and "--output out: the dataset out/cleaned/data.jsonl lies in it" in done.stderr
    assert cleaned.read_bytes() == before


def test_several_processes_are_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_policy(place)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "runs on one process" in invoke("data.jsonl").stderr


def test_rows_left_out_of_a_baseline_are_reported(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_rows(place / "data.jsonl", [*pair_rows(3), {**pair_rows(1)[0], "chosen": [], "rejected": []}])
    write_policy(place, reading={"on_bad_row": "skip"}, baseline="baseline.safetensors")
    done = invoke("baseline", "data.jsonl", "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["pairs"] == 3
    assert "rows left out of the baseline: not_text: 1" in " ".join([done.stderr, caplog.text])


def test_a_verdict_of_before_is_rendered_in_another_format(place: Path) -> None:
    write_policy(place, {"probes": {"rude": {"max_score": 1}}})
    assert invoke("data.jsonl", "--output", "out").exit_code == 0
    assert not (place / "out" / "manifest.filter.jsonl").exists() and not (place / "out" / "cleaned").exists()
    shown = invoke("show", "out/verdict.json", "--format", "sarif")
    assert shown.exit_code == 0 and shown.stdout == (place / "out" / "verdict.sarif").read_text(encoding="utf-8")


def test_a_dataset_called_like_a_command_is_given_by_its_path(place: Path) -> None:
    write_rows(place / "schema" / "part.jsonl", pair_rows(2))
    write_policy(place, {"hygiene": {"duplicates": 0}})
    assert "hygiene.duplicates" in invoke("./schema").stdout


def test_manifests_leave_alone_what_does_not_push_towards_the_behavior(place: Path) -> None:
    write_policy(place)
    found = run()
    done = invoke("data.jsonl", "--output", "out", "--clean", "flip", "--quiet")
    assert done.exit_code == 1
    towards = {name for name, score in scores(found).items() if score > 0}
    assert 0 < len(towards) < 10
    for action in ("filter", "flip"):
        manifest = Manifest.load(place / "out" / f"manifest.{action}.jsonl")
        assert {decision.pair_id for decision in manifest.decisions} == towards
        assert manifest.header.rule["gate"] == ["rude.max_score"]
    cleaned = [json.loads(line) for line in (place / "out" / "cleaned" / "data.jsonl").read_text().splitlines()]
    swapped = {pair_id({**each, "chosen": each["rejected"], "rejected": each["chosen"]}) for each in cleaned}
    assert len(cleaned) == 10 and towards <= swapped


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def test_a_branch_with_contaminated_pairs_is_stopped_at_their_lines_and_its_cleaned_file_passes(
    place: Path, commands: Commands
) -> None:
    data = write_rows(place / "preferences" / "part.jsonl", pair_rows(12))
    write_policy(
        place, {"probes": {"rude": {"threshold": 0.2, "max_flagged_count": 0}}}, baseline="baseline.safetensors"
    )
    record_baseline(load_policy("gate.yaml"), "preferences").save("baseline.safetensors")
    (place / ".gitignore").write_text("m0\n.trl-attribution-cache\nout\n")
    git(place, "init", "-q", "-b", "main")
    git(place, "add", ".")
    git(place, "commit", "-qm", "trusted")
    git(place, "checkout", "-qb", "more")
    write_rows(data, [*pair_rows(13), *contaminated()])
    git(place, "commit", "-qam", "more pairs")

    def gate(*more: str) -> subprocess.CompletedProcess[str]:
        command = ["trl-attribution", "gate", "preferences/", "--policy", "gate.yaml", "--base-ref", "main", *more]
        return commands.run(place, *command, GITHUB_STEP_SUMMARY=str(place / "summary.md"))

    failed = gate("--format", "github", "--output", "out")
    assert failed.returncode == 1, failed.stdout + failed.stderr
    assert [f"file=preferences/part.jsonl,line={line}" in failed.stdout for line in (13, 14, 15, 16)] == [
        False, True, True, True,
    ]  # fmt: skip
    assert "push towards rude" in (place / "summary.md").read_text()
    verdict = json.loads((place / "out" / "verdict.json").read_text())
    assert (verdict["pairs"], verdict["examined"], verdict["computed"]) == (16, 4, 4)
    cleaned = place / "out" / "cleaned" / "preferences" / "part.jsonl"
    assert cleaned.read_bytes().splitlines() == data.read_bytes().splitlines()[:13]
    data.write_bytes(cleaned.read_bytes())
    git(place, "commit", "-qam", "cleaned")
    passed = gate("--json")
    assert passed.returncode == 0, passed.stdout + passed.stderr
    assert json.loads(passed.stdout)["computed"] == 0 and not passed.stderr.strip()
    data.write_text(data.read_text() + "not json\n")
    undecided = invoke("preferences/", "--base-ref", "main")
    assert undecided.exit_code == 2 and "preferences/part.jsonl:14" in undecided.output
