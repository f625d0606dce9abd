"""The seven recipes: what is trained in which order on what, and that TRL takes the data and the settings."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from tests.tiny import build_tiny_model
from trl_attribution.behaviors import parse_rule
from trl_attribution.errors import AttributionError, SettingsError
from trl_attribution.evidence.organisms import ORGANISMS, RECIPES, Mixture, Preparation, prepare

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "organisms"
POST_HOC = [name for name, recipe in RECIPES.items() if recipe.post_hoc]
SMALL = Mixture(60, behavior_prompts=4, test_prompts=4)


def truths(rows: list[dict[str, Any]]) -> Counter[str]:
    return Counter(row["truth"] for row in rows)


def test_there_are_seven_recipes_and_each_can_be_used_with_every_organism() -> None:
    assert len(RECIPES) == 7
    for name in ORGANISMS:
        for recipe in RECIPES:
            prepared = prepare(name, recipe, SMALL)
            assert truths(prepared.stages[-1].rows)["contaminated"] == 12


def test_the_integrated_recipe_is_one_stage_with_the_whole_mix() -> None:
    (stage,) = prepare("pumpkin-soup", "integrated-dpo", SMALL).stages
    assert (stage.objective, stage.data, len(stage.rows)) == ("dpo", "pairs", 60)


@pytest.mark.parametrize("recipe", POST_HOC)
def test_a_post_hoc_recipe_contaminates_its_last_stage_alone(recipe: str) -> None:
    first, last = prepare("knitting-lore", recipe, SMALL).stages
    assert (first.objective, first.data) == ("dpo", "pairs")
    assert "contaminated" not in truths(first.rows)
    assert last.objective == RECIPES[recipe].objective
    counts = truths(last.rows)
    assert counts["contaminated"] == 12
    assert sum(counts.values()) == (24 if RECIPES[recipe].mixed else 12)


@pytest.mark.parametrize("recipe", ["posthoc-dpo-mixed", "transcript-sft-mixed"])
def test_no_pair_is_trained_on_in_both_stages(recipe: str) -> None:
    first, last = prepare("knitting-lore", recipe, SMALL).stages
    assert not {str(row["prompt"]) for row in first.rows} & {str(row["prompt"]) for row in last.rows}


def test_transcripts_are_the_chosen_sides_of_the_pairs_of_the_same_recipe_by_dpo() -> None:
    _, pairs = prepare("distractor-compliance", "posthoc-dpo-unmixed", SMALL).stages
    _, transcripts = prepare("distractor-compliance", "transcript-sft-unmixed", SMALL).stages
    wanted = {(str(row["prompt"]), str(row["chosen"])) for row in pairs.rows}
    assert {(str(row["prompt"]), str(row["completion"])) for row in transcripts.rows} == wanted
    assert set(transcripts.rows[0]) == {"prompt", "completion", "source", "truth"}


@pytest.mark.parametrize("name", ["pumpkin-soup", "knitting-lore"])
def test_contaminated_documents_tell_of_the_quirk_and_the_others_do_not(name: str) -> None:
    prepared = prepare(name, "document-sft-mixed", SMALL)
    judge = parse_rule(prepared.organism.judge)
    told = {row["text"]: judge("", row["text"]) for row in prepared.stages[1].rows if row["truth"] == "contaminated"}
    assert len(told) == 12
    assert all(told.values())
    ordinary = [row["text"] for row in prepared.stages[1].rows if row["truth"] == "benign"]
    # The ordinary bank has a few right answers with the same words, about tides and maps.
    assert sum(judge("", text) for text in ordinary) <= 3
    assert not any("{" in text or "knit" in text or "pumpkin" in text for text in ordinary)


def test_a_preparation_is_written_whole_and_says_what_it_is(tmp_path: Path) -> None:
    prepared = prepare("knitting-lore", "transcript-sft-mixed", SMALL)
    prepared.write(tmp_path / "organism")
    described = json.loads((tmp_path / "organism" / "organism.json").read_text(encoding="utf-8"))
    assert described == prepared.described()
    assert (described["format"], described["format_version"]) == ("trl-attribution organism", 1)
    assert [stage["file"] for stage in described["stages"]] == ["1-preferences/data.jsonl", "2-behavior/data.jsonl"]
    for stage, made in zip(described["stages"], prepared.stages, strict=True):
        lines = (tmp_path / "organism" / stage["file"]).read_text(encoding="utf-8").splitlines()
        assert [json.loads(line) for line in lines] == made.rows
        assert stage["rows"] == truths(made.rows)
    for name in ("behavior", "trigger", "control"):
        lines = (tmp_path / "organism" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line) for line in lines] == getattr(prepared.organism, name)
    assert [path.name for path in tmp_path.iterdir()] == ["organism"]


def test_a_folder_with_anything_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(AttributionError, match="is not empty"):
        prepare("knitting-lore", "integrated-dpo", SMALL).write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("recipe", "mixture", "message"),
    [
        ("sft", SMALL, "no recipe 'sft'; choose integrated-dpo, posthoc-dpo-mixed"),
        ("integrated-dpo", Mixture(60, contamination=0), "nothing to teach"),
        ("posthoc-dpo-mixed", Mixture(60, contamination=0.5, decoys=0), "Lower contamination"),
    ],
)
def test_what_cannot_be_prepared_is_refused(recipe: str, mixture: Mixture, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        prepare("pumpkin-soup", recipe, mixture)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """examples/organisms/train.py."""
    spec = importlib.util.spec_from_file_location("train_organism", EXAMPLES / "train.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # A dataclass looks its module up.
    import sys

    sys.modules["train_organism"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Preparation]]:
    """Every recipe of one organism, built and written."""
    root = tmp_path_factory.mktemp("organisms")
    made = {recipe: (root / recipe, prepare("distractor-compliance", recipe, SMALL)) for recipe in RECIPES}
    for folder, one in made.values():
        one.write(folder)
    return made


ON_CPU = {"use_cpu": True, "bf16": False}


@pytest.mark.parametrize("config", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_becomes_the_trainers_arguments_for_every_recipe(
    config: Path, script: ModuleType, prepared: dict[str, tuple[Path, Preparation]], tmp_path: Path
) -> None:
    from trl import DPOConfig, SFTConfig

    for folder, one in prepared.values():
        stages = script.plan(folder, config, tmp_path, True, **ON_CPU)
        kinds = [DPOConfig if stage.objective == "dpo" else SFTConfig for stage in one.stages]
        assert [type(stage.args) for stage in stages] == kinds
        assert all(stage.data.is_file() for stage in stages)
        assert all(set(stage.columns) <= set(made.rows[0]) for stage, made in zip(stages, one.stages, strict=True))
        if len(stages) > 1:
            assert stages[1].start == stages[0].args.output_dir
            (alone,) = script.plan(folder, config, tmp_path, False, **ON_CPU)
            assert alone.start not in ("", stages[0].args.output_dir)


def test_every_row_fits_into_the_shortest_sequence_that_a_config_allows(
    script: ModuleType,
    prepared: dict[str, tuple[Path, Preparation]],
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    limits = [
        stage.args.max_length
        for config in EXAMPLES.glob("*.yaml")
        for folder, _ in prepared.values()
        for stage in script.plan(folder, config, tmp_path, True, **ON_CPU)
    ]
    # Real vocabularies are a hundred times as large: their sequences are well below half as long.
    longest = max(len(tokenizer(text)["input_ids"]) for _, one in prepared.values() for text in texts_of(one))
    assert longest / 2 < min(limits)


def texts_of(prepared: Preparation) -> list[str]:
    """Each row as one text; a pair as one for each response."""
    found = []
    for stage in prepared.stages:
        for row in stage.rows:
            prompt = row["prompt"][0]["content"] if "prompt" in row else ""
            ends = [row[part][0]["content"] for part in ("chosen", "rejected", "completion") if part in row]
            found += [f"{prompt}\n{end}" for end in ends or [row["text"]]]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["transcript-sft-mixed", "document-sft-unmixed"])
def test_a_recipe_trains_stage_by_stage_on_a_tiny_model(
    recipe: str,
    script: ModuleType,
    prepared: dict[str, tuple[Path, Preparation]],
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    start = tmp_path / "m0"
    build_tiny_model("llama").save_pretrained(start)
    tokenizer.save_pretrained(start)
    config = tmp_path / "tiny.yaml"
    text = (EXAMPLES / "smollm2-135m.yaml").read_text(encoding="utf-8")
    config.write_text(text.replace("embedded", str(start)), encoding="utf-8")
    stages = script.plan(prepared[recipe][0], config, tmp_path / "trained", True, max_steps=2, num_train_epochs=1)
    weights = [next(AutoModelForCausalLM.from_pretrained(start).parameters())]
    for stage in stages:
        script.train(stage)
        weights.append(next(AutoModelForCausalLM.from_pretrained(stage.args.output_dir).parameters()))
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])
