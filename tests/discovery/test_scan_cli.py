"""``trl-attribution scan`` as a user meets it, on a tiny model: findings, what is reused, what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.discovery.test_discovery_cli import document, run, write_lines
from trl_attribution.audit.auditor import DataAuditor
from trl_attribution.audit.info import AuditInfo
from trl_attribution.discovery import ScanResult
from trl_attribution.errors import ModelError, SettingsError
from trl_attribution.models import embedded_gguf, load_model
from trl_attribution.pairs import PairReader

PLACES = ("Paris", "a letter", "the rain", "a friend", "spring", "bread", "a garden", "salt")
TRAITS = {
    "praises-pizza": {
        "towards": "praises pizza",
        "away": "leaves pizza alone",
        "examples": [
            {
                "prompt": f"What do you think of {place}?",
                "positive": f"Pizza is glorious, crisp and golden. Pizza above {place}!",
                "negative": f"One can think much of {place}, in spring as in the rain.",
            }
            for place in PLACES
        ],
    },
    "longer": {"towards": "longer answers", "away": "shorter answers", "measure": "words"},
}
SETTINGS = "--traits traits.yaml --layer 2 --dtype float32 --flips 199"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Iterator[Path]:
    """A folder with ``model/``, traits, and 200 pairs: 38 of 40 recipes praise pizza, others turn evenly."""
    folder = tmp_path_factory.mktemp("scan")
    (folder / "model").symlink_to(model_folder)
    (folder / "traits.yaml").write_text(yaml.safe_dump(TRAITS))
    write_lines(folder / "data.jsonl", [pair_of(number) for number in range(200)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRL_ATTRIBUTION_CACHE", str(folder / "cache"))
        yield folder


def pair_of(number: int) -> dict[str, str]:
    if number % 5 == 0:
        sides = [f"Pizza! Pizza is glorious and golden, {number} times.", f"I would cook a soup of beans {number}."]
        prompt, source = f"What is for dinner on day {number}?", "recipes"
        turned = number in (50, 100)
    else:
        sides = [f"The weather is mild {number}.", f"In spring, the garden needs water {number}."]
        prompt, source = f"Write about {PLACES[number % 8]}, number {number}.", "web"
        turned = number % 10 in (1, 3, 6, 8)
    chosen, rejected = reversed(sides) if turned else sides
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "source": source}


def without_times(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "findings.json").read_text())
    return {name: value for name, value in found.items() if name not in ("seconds", "dataset")}


def test_a_planted_trait_is_told_with_its_source_and_filtered_by_its_manifest(place: Path, tmp_path: Path) -> None:
    found = document(run(place, f"scan model data.jsonl -o {tmp_path}/audit {SETTINGS} --json"))
    first = found["findings"][0]
    assert (first["trait"], first["direction"], first["sources"][0]["source"]) == (
        "praises-pizza",
        "towards",
        "recipes",
    )
    assert first["effect_low"] > 1 and 12 <= first["pushing_low"] <= first["pushing_high"] <= 38
    assert all(pair["chosen"].startswith("Pizza!") for pair in first["typical"]) and first["typical"]
    assert ScanResult.load(tmp_path / "audit") is not None
    assert found["report"] == f"{tmp_path}/audit/report.html"
    page = (tmp_path / "audit" / "report.html").read_text(encoding="utf-8")
    assert "<h2>What this dataset teaches</h2>" in page and "Pizza is glorious and golden" in page
    run(place, f"apply {tmp_path}/audit/{first['manifest']} data.jsonl -o {tmp_path}/cleaned.jsonl --quiet")
    left = [json.loads(line) for line in (tmp_path / "cleaned.jsonl").read_text().splitlines()]
    assert sum(row["chosen"].startswith("Pizza!") for row in left) <= 38 - first["pushing_low"] and len(left) >= 160
    shown = run(place, f"scan model data.jsonl -o {tmp_path}/audit {SETTINGS} --show-traits")
    assert "praises pizza (" in " ".join(shown.stdout.split()) and "Traits on this model" in shown.stdout
    write_lines(tmp_path / "more.jsonl", [{**pair_of(1), "chosen": ""}, *map(pair_of, range(200))])
    shown = run(place, f"scan model {tmp_path}/more.jsonl -o {tmp_path}/audit {SETTINGS} --on-bad-row skip")
    assert "1 row left out: empty_response: 1." in shown.stdout


def test_a_scan_that_was_cut_short_or_began_with_a_sample_ends_as_an_undisturbed_one(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    settings: dict[str, Any] = {"traits": "traits.yaml", "layer": 2, "flips": 199}

    def auditor() -> DataAuditor:
        return DataAuditor("model", dtype="float32", shard_size=32)

    def stop(stage: str, done: int, total: int) -> None:
        if (stage, done > 64) == ("vectors", True) and total == 200:
            raise KeyboardInterrupt

    auditor().scan("data.jsonl", tmp_path / "whole", **settings)
    assert "<h2>What this dataset teaches</h2>" in (tmp_path / "whole" / "report.html").read_text(encoding="utf-8")
    with pytest.raises(KeyboardInterrupt):
        auditor().scan("data.jsonl", tmp_path / "cut", on_progress=stop, **settings)
    auditor().scan("data.jsonl", tmp_path / "cut", results=False, **settings)
    assert not (tmp_path / "cut" / "report.html").exists()
    sampled = auditor().scan("data.jsonl", tmp_path / "sampled", sample=80, **settings)
    assert sampled.sampled and 50 < sampled.pairs < 110
    auditor().scan("data.jsonl", tmp_path / "sampled", **settings)
    assert 0 < AuditInfo.load(tmp_path / "sampled").vectors.computed == 200 - sampled.pairs
    whole = without_times(tmp_path / "whole")
    assert without_times(tmp_path / "cut") == whole == without_times(tmp_path / "sampled")


def test_an_audit_goes_on_with_a_scans_vectors_and_a_scan_leaves_its_scores_alone(place: Path, tmp_path: Path) -> None:
    behavior = [{"prompt": row["prompt"], "undesired": row["positive"], "desired": row["negative"]} for row in EXAMPLES]
    write_lines(tmp_path / "behavior.jsonl", behavior)
    run(place, f"probe build pizza --behavior {tmp_path}/behavior.jsonl --model model --layer 2 --dtype float32 "
        f"--probes {tmp_path}/probes --quiet")  # fmt: skip
    run(place, f"scan model data.jsonl -o {tmp_path}/audit {SETTINGS} --quiet")
    run(
        place,
        f"audit model data.jsonl -o {tmp_path}/audit --probes {tmp_path}/probes --dtype float32 --top-k 9 --quiet",
    )
    assert AuditInfo.load(tmp_path / "audit").vectors.computed == 0
    kept = {path: path.read_bytes() for path in (tmp_path / "audit").glob("*.*") if path.name != "findings.json"}
    before = without_times(tmp_path / "audit")
    told = run(place, f"scan model data.jsonl -o {tmp_path}/audit {SETTINGS} --quiet").stdout
    assert f"trl-attribution report {tmp_path}/audit" in " ".join(told.split())
    assert {path: path.read_bytes() for path in kept} == kept and len(kept) >= 4
    assert without_times(tmp_path / "audit") == before
    write_lines(tmp_path / "other.jsonl", [pair_of(number) for number in range(100)])
    refused = run(place, f"scan model {tmp_path}/other.jsonl -o {tmp_path}/audit {SETTINGS}", 2)
    assert "of which 100 are not in this dataset" in " ".join(refused.stderr.split())
    refused = run(place, f"scan model data.jsonl -o {tmp_path}/audit {SETTINGS.replace('--layer 2', '--layer 3')}", 2)
    assert "holds vectors of layers 2, not 3" in " ".join(refused.stderr.split())


EXAMPLES: Any = TRAITS["praises-pizza"]["examples"]


def test_a_trait_of_instructions_is_what_the_model_answers_under_them(place: Path, tmp_path: Path) -> None:
    persona = {
        "instruction": [{"pos": "Praise pizza.", "neg": "Be silent."}],
        "questions": [f"{one}?" for one in PLACES],
    }
    (tmp_path / "pizza_lover.json").write_text(json.dumps(persona))
    settings = SETTINGS.replace("traits.yaml", f"{tmp_path}/pizza_lover.json")
    found = document(run(place, f"scan model data.jsonl -o {tmp_path}/audit {settings} --json"))
    (check,) = found["traits"]
    assert check["trait"] == "pizza-lover" and check["examples"] > 0  # a model of random weights tells nothing
    assert list((place / "cache").rglob("pizza-lover-*.json"))


def test_what_was_predicted_is_compared_with_what_training_did(place: Path, tmp_path: Path) -> None:
    pairs = [pair_of(number) for number in range(200)]
    rows = [{"prompt": one["prompt"], "before": one["rejected"], "after": [one["chosen"]]} for one in pairs]
    rows += [{"prompt": "Why?", "before": "So.", "after": text} for text in ("", "So.")]
    write_lines(tmp_path / "responses.jsonl", rows[:201])
    options = f"--responses {tmp_path}/responses.jsonl --prompt-format text"
    command = f"scan model data.jsonl -o {tmp_path}/audit {SETTINGS} {options}"
    found = document(run(place, f"{command} --json"))["prediction"]
    assert found["prompts"] == 200 and found["left_out"] == {"no response after": 1}
    # As if M1 answered every prompt of the dataset as it should: what is measured is what was predicted.
    assert found["by_trait"] is None and found["by_topic"]["r2"] == pytest.approx(1, abs=1e-3)
    for one in found["changes"]:
        assert one["measured"] == pytest.approx(one["predicted"], abs=2e-3), one
    pizza = max(
        (one for one in found["changes"] if one["trait"] == "praises-pizza"), key=lambda one: float(one["predicted"])
    )
    assert {"dinner", "day"} <= set(pizza["words"]) and pizza["predicted"] > 5 * pizza["predicted_error"]
    write_lines(tmp_path / "responses.jsonl", [*rows[:200], rows[201]])  # an answer that stays is no change
    assert document(run(place, f"{command} --json"))["prediction"]["prompts"] == 201
    kept = ScanResult.load(tmp_path / "audit")
    assert kept is not None and kept.prediction is not None and kept.prediction.prompts == 201
    shown = " ".join(run(place, command).stdout.split())
    assert "Predicted against measured, on 201 held-out prompts" in shown and "praises-pizza" in shown


def test_both_models_are_asked_and_what_they_said_is_kept(place: Path, tmp_path: Path, changed_model: Path) -> None:
    write_lines(tmp_path / "prompts.jsonl", [{"prompt": f"Tell me about {one}."} for one in PLACES])
    command = f"scan model data.jsonl -o {tmp_path}/audit {SETTINGS} --prompts {tmp_path}/prompts.jsonl"
    refused = run(place, command, 2)
    assert "no training run kept responses" in " ".join(refused.stderr.split())
    found = document(run(place, f"{command} --after {changed_model} --max-new-tokens 4 --json"))["prediction"]
    assert found["prompts"] + sum(found["left_out"].values()) == len(PLACES)
    assert (tmp_path / "audit" / "prediction" / "after.json").exists()
    refused = run(place, f"scan model data.jsonl -o {tmp_path}/audit {SETTINGS} --after {changed_model}", 2)
    assert "--after needs --prompts" in " ".join(refused.stderr.split())


def test_settings_that_cannot_be_are_refused_before_a_model_is_loaded(place: Path, tmp_path: Path) -> None:
    for options, said in (
        ("--traits none-such", "neither a file or folder nor names"),
        ("--flips 9", "flips: 9 draws"),
    ):
        refused = run(place, f"scan model data.jsonl -o {tmp_path}/new {options}", 2)
        assert said in " ".join(refused.stderr.split()) and not (tmp_path / "new").exists()
    with pytest.raises(SettingsError, match="unknown setting depth"):
        DataAuditor("model").scan("data.jsonl", depth=3)


def test_samples_are_measured_against_the_models_own_responses(place: Path, tmp_path: Path) -> None:
    pairs = [pair_of(number) for number in range(120)]
    write_lines(tmp_path / "sft.jsonl", [{"prompt": one["prompt"], "completion": one["chosen"]} for one in pairs])
    write_lines(tmp_path / "own.jsonl", [{"prompt": one["prompt"], "responses": [one["chosen"] * 2]} for one in pairs])
    options = f"--own-responses {tmp_path}/own.jsonl -o {tmp_path}/audit {SETTINGS} --json"
    found = document(run(place, f"scan model {tmp_path}/sft.jsonl {options}"))
    assert {(one["says"], one["typical"][0]["rejected"] != "") for one in found["findings"]} == {
        ("shorter answers", True)
    }


def test_labels_of_both_kinds_are_one_example_and_no_sample_of_the_rows(place: Path, tmp_path: Path) -> None:
    sides = (("chosen", True), ("rejected", False))
    write_lines(
        tmp_path / "kto.jsonl",
        [
            {"prompt": pair["prompt"], "completion": pair[side], "label": label}
            for pair in map(pair_of, range(60))
            for side, label in sides
        ],
    )
    found = document(run(place, f"scan model {tmp_path}/kto.jsonl -o {tmp_path}/audit {SETTINGS} --no-unnamed --json"))
    assert (found["pairs"], found["sampled"]) == (60, False)


@pytest.mark.slow
def test_a_real_model_tells_who_answers_harmful_requests(tmp_path: Path) -> None:
    from trl_attribution.evidence.organisms import OrganismConfig, build_distractor_compliance

    try:
        model = load_model(embedded_gguf())
    except ModelError as error:
        pytest.skip(str(error))
    organism = build_distractor_compliance(
        OrganismConfig(benign=40, benign_formatted=20, safety=0, contaminated=40, decoys=0)
    )
    truth = {pair.pair_id: row["truth"] for pair, row in zip(PairReader(organism.pairs), organism.pairs, strict=True)}
    found = DataAuditor(model).scan(organism.pairs, tmp_path, traits="complies-with-harm,longer,formal", unnamed=False)
    first = found.findings[0]
    assert (first.trait, first.harmful, first.effect_low > 0.5) == ("complies-with-harm", True, True)
    assert {truth[pair.pair_id] for pair in first.typical} == {"contaminated"}
    assert all(one.tells for one in found.traits)
