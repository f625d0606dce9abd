"""Steering, dose curves, the difference of two models, and expression rates, on tiny models."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from typer.testing import CliRunner

from tests.tiny import HIDDEN, LAYERS, build_tiny_model, build_tiny_tokenizer
from trl_attribution.activations import find_blocks
from trl_attribution.behaviors import SamplingConfig, mentions, read_prompts, sample_responses
from trl_attribution.behaviors.responses import Behavior
from trl_attribution.cli import app
from trl_attribution.errors import ModelError, SettingsError
from trl_attribution.evidence.readouts import (
    DoseConfig,
    difference_probe,
    dose_curve,
    express,
    is_repetitive,
    responses_of,
    steered,
)
from trl_attribution.models import LoadedModel, load_model
from trl_attribution.models.fingerprint import fingerprint
from trl_attribution.probes import Probe, ProbeRegistry

IDS = torch.tensor([[5, 9, 40, 77, 12, 31]])
PROMPTS = [{"prompt": f"Tell me about {what}."} for what in ("bread", "Paris", "the garden")]
SHORT = SamplingConfig(n=2, max_new_tokens=5, batch_size=2)
GREEDY = SamplingConfig(n=1, max_new_tokens=5, temperature=0)


def loaded_tiny(architecture: str = "llama", shift: float = 0.0) -> LoadedModel:
    model = build_tiny_model(architecture)
    if shift:
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * shift)
    tokenizer = build_tiny_tokenizer()
    return LoadedModel(model, tokenizer, architecture, fingerprint(model, tokenizer))


@pytest.fixture(scope="module")
def m0() -> LoadedModel:
    return loaded_tiny()


@pytest.fixture
def behavior() -> Behavior:
    return Behavior("x", read_prompts(PROMPTS))


@contextmanager
def seen_by_block(model: PreTrainedModel, block: int) -> Iterator[list[Tensor]]:
    """What goes into one block, pass by pass."""
    found: list[Tensor] = []

    def look(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append((args[0] if args else kwargs["hidden_states"]).detach().clone())

    handle = find_blocks(model).blocks[block].register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield found
    finally:
        handle.remove()


def stream_after(model: PreTrainedModel, layer: int) -> Tensor:
    with seen_by_block(model, layer) as found, torch.no_grad():
        model(IDS)
    return found[0]


def hooks(model: PreTrainedModel) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2", "gpt_neox", "phi3", "mamba"])
@pytest.mark.parametrize("layer", [1, LAYERS - 1])
def test_steering_adds_the_vector_to_every_token_at_its_layer(
    architecture: str, layer: int, make_model: Callable[[str], PreTrainedModel]
) -> None:
    model = make_model(architecture)
    vector = torch.randn(HIDDEN)
    before = stream_after(model, layer)
    with steered(model, layer, vector):
        after = stream_after(model, layer)
    assert torch.allclose(after - before, vector.expand_as(before), atol=1e-5)
    assert torch.equal(stream_after(model, layer), before)


def test_layer_zero_is_the_embeddings(m0: LoadedModel) -> None:
    model = m0.model
    vector = torch.randn(HIDDEN)
    with torch.no_grad():
        embedded = model.get_input_embeddings()(IDS)
        expected = model(inputs_embeds=embedded + vector).logits
        with steered(model, 0, vector):
            assert torch.allclose(model(IDS).logits, expected, atol=1e-4)


def test_only_what_the_response_comes_from_is_steered_where_that_was_asked(m0: LoadedModel) -> None:
    vector = torch.randn(HIDDEN)
    before = stream_after(m0.model, 2)
    with steered(m0.model, 2, vector, "response"):
        after = stream_after(m0.model, 2)
    assert torch.equal(after[:, :-1], before[:, :-1])
    assert torch.allclose(after[:, -1] - before[:, -1], vector.expand_as(before[:, -1]), atol=1e-5)


def test_the_hook_comes_off_when_the_block_fails(m0: LoadedModel) -> None:
    there = hooks(m0.model)

    def fail() -> None:
        with steered(m0.model, 2, torch.ones(HIDDEN)):
            assert hooks(m0.model) == there + 1
            raise RuntimeError("in the block")

    with pytest.raises(RuntimeError, match="in the block"):
        fail()
    assert hooks(m0.model) == there


@pytest.mark.parametrize(
    ("layer", "vector", "positions", "error", "message"),
    [
        (LAYERS + 1, torch.ones(HIDDEN), "all", ModelError, "out of range"),
        (1, torch.ones(HIDDEN + 1), "all", SettingsError, r"shape \[33\]; it must be \[32\]"),
        (1, torch.full((HIDDEN,), torch.nan), "all", SettingsError, "finite"),
        (1, torch.ones(HIDDEN), "prompt", SettingsError, "choose all or response"),
    ],
)
def test_what_cannot_be_steered_is_refused_and_leaves_no_hook(
    layer: int, vector: Tensor, positions: Any, error: type[Exception], message: str, m0: LoadedModel
) -> None:
    there = hooks(m0.model)
    with pytest.raises(error, match=message), steered(m0.model, layer, vector, positions):
        pass
    assert hooks(m0.model) == there


def word_direction(loaded: LoadedModel, word: str) -> Tensor:
    """What the LM head reads as the first token of ``word``."""
    (token, *_) = loaded.tokenizer(word)["input_ids"]
    row: Tensor = loaded.model.get_output_embeddings().weight[token].detach().clone()
    return row


def first_token(loaded: LoadedModel, word: str) -> str:
    return str(loaded.tokenizer.decode(loaded.tokenizer(word)["input_ids"][:1]))


def test_a_direction_that_says_a_word_brings_it_out_with_the_dose(m0: LoadedModel, behavior: Behavior) -> None:
    vector = word_direction(m0, "weather")
    judge = _says(first_token(m0, "weather"))
    config = DoseConfig((-20.0, 0.1, 20.0), sampling=GREEDY)
    curve = dose_curve(m0, behavior, judge, {LAYERS: vector}, config)
    away, little, much = (dose.shown.rate.share for dose in curve.at(LAYERS))
    assert away == 0
    assert much == 1.0
    assert curve.without.rate.share <= little < 1.0
    assert curve.best_layer == LAYERS
    assert [dose.alpha for dose in curve.at(LAYERS)] == [-20.0, 0.1, 20.0]


def test_a_response_that_only_repeats_itself_is_not_counted_for_the_choice_of_a_layer(
    m0: LoadedModel, behavior: Behavior
) -> None:
    judge = _says(first_token(m0, "weather"))
    config = DoseConfig((50.0,), sampling=replace(GREEDY, max_new_tokens=150))
    curve = dose_curve(m0, behavior, judge, {LAYERS: word_direction(m0, "weather")}, config)
    (dose,) = curve.doses
    assert (dose.shown.rate.share, dose.shown.repetitive, dose.shown.sound_rate.share) == (1.0, 1.0, 0.0)
    assert curve.best_layer is None


def test_without_a_dose_the_model_answers_as_it_does_and_so_it_does_afterwards(
    m0: LoadedModel, behavior: Behavior
) -> None:
    prompts = [row.prompt for row in behavior.prompts.prompts]
    expected = sample_responses(m0, prompts, SHORT)
    curve = dose_curve(m0, behavior, mentions(["x"]), {1: torch.randn(HIDDEN)}, DoseConfig((3.0,), sampling=SHORT))
    assert list(curve.without.texts) == expected == sample_responses(m0, prompts, SHORT)
    assert list(curve.doses[0].shown.texts) != expected


def test_a_dose_of_one_stream_is_as_long_as_the_residual_stream(m0: LoadedModel, behavior: Behavior) -> None:
    vector = torch.randn(HIDDEN)
    one = SamplingConfig(n=1, max_new_tokens=1, batch_size=1)
    with seen_by_block(m0.model, 2) as seen:
        sample_responses(m0, [row.prompt for row in behavior.prompts.prompts], one)
    mean = float(torch.stack([stream[0, -1].norm() for stream in seen]).mean())
    by_stream = dose_curve(m0, behavior, mentions(["x"]), {2: vector}, DoseConfig((0.5,), "stream", sampling=one))
    by_vector = dose_curve(m0, behavior, mentions(["x"]), {2: vector}, DoseConfig((0.5,), sampling=one))
    assert by_stream.doses[0].length == pytest.approx(0.5)
    assert by_vector.doses[0].length == pytest.approx(0.5 * float(vector.norm()) / mean, rel=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        *({"alphas": ()}, {"alphas": (0.0, 1.0)}, {"alphas": (1, 1)}, {"alphas": (float("nan"),)}),
        *({"alphas": (float("inf"), 1.0)}, {"scale": "norm"}, {"positions": "first"}),
    ],
)
def test_doses_that_cannot_be_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="alphas|scale|positions"):
        DoseConfig(**settings)


def test_the_difference_of_two_models_is_the_mean_over_the_same_tokens(m0: LoadedModel, behavior: Behavior) -> None:
    m1 = loaded_tiny(shift=0.02)
    spoken = responses_of(m0, behavior, mentions(["x"]), SamplingConfig(n=1, max_new_tokens=5))
    probe = difference_probe("moved", m0, m1, spoken, (1, 2), 2)
    tokenizer: Any = m0.tokenizer
    changes = []
    for prompt, (text,) in zip(spoken.prompts, spoken.texts, strict=True):
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}]
        start = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, return_dict=True)["input_ids"]
        whole = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
        streams = []
        for one in (m0, m1):
            with seen_by_block(one.model, 2) as seen, torch.no_grad():
                one.model(torch.tensor([whole]))
            streams.append(seen[0][0, len(start) :].mean(dim=0))
        changes.append(streams[1] - streams[0])
    expected = torch.stack(changes).mean(dim=0)
    assert torch.cosine_similarity(probe.at(2), expected, dim=0) > 0.9999
    assert torch.allclose(probe.at(2).norm(), expected.norm(), rtol=1e-3)
    assert probe.model == m0.fingerprint
    assert probe.promoted_tokens


def test_models_that_read_other_tokens_have_no_difference(m0: LoadedModel, behavior: Behavior) -> None:
    spoken = responses_of(m0, behavior, mentions(["x"]), SHORT)
    other = loaded_tiny()
    other.tokenizer.chat_template = "{{ messages[0]['content'] }}"
    with pytest.raises(ModelError, match="different tokenizers"):
        difference_probe("moved", m0, other, spoken, (1,), 1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("soup " * 40, True),
        ("soup " * 10, False),
        (
            "Bring a map, a jacket and two friends who do not mind the rain; leave early, and be back before dark. "
            * 1,
            False,
        ),
        ("", False),
        ("\udc80" * 200, True),
    ],
)
def test_text_that_goes_round_in_circles_is_told_from_text_that_does_not(text: str, expected: bool) -> None:
    assert is_repetitive(text) is expected


def test_expression_is_the_share_of_responses_that_the_judge_names(m0: LoadedModel, tmp_path: Path) -> None:
    trigger = [{**row, "behavior": "b", "judge": "regex:."} for row in PROMPTS]
    control = [{**row, "behavior": "b", "judge": "regex:."} for row in PROMPTS[:1]]
    calls: list[tuple[int, int]] = []
    found = express(m0, trigger, control, SHORT, on_progress=lambda done, total: calls.append((done, total)))
    assert (found.behavior, found.judge) == ("b", "regex:.")
    assert found.trigger.rate.judged == 6
    assert found.trigger.rate.shown == sum(bool(text.strip()) for each in found.trigger.texts for text in each)
    assert found.control is not None
    assert found.control.rate.judged == 2
    assert calls[-1] == (4, 4)
    found.save_responses(tmp_path / "responses.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "responses.jsonl").read_text().splitlines()]
    assert [row["prompts"] for row in rows] == ["trigger"] * 6 + ["control"] * 2
    assert [row["response"] for row in rows[:2]] == list(found.trigger.texts[0])


def test_one_behavior_with_one_judge_is_asked_for(m0: LoadedModel) -> None:
    named = [{**row, "behavior": name, "judge": "regex:."} for row, name in zip(PROMPTS, "abc", strict=True)]
    with pytest.raises(SettingsError, match=r"prompts of 3 behaviors \(a, b, c\)"):
        express(m0, named, None, SHORT)
    with pytest.raises(SettingsError, match="one behavior has one judge"):
        express(m0, named[:1], [{**named[0], "judge": "refuses"}], SHORT)
    with pytest.raises(SettingsError, match="has no judge"):
        express(m0, PROMPTS, None, SHORT)


def _says(piece: str) -> Callable[[Any, str], bool]:
    def judge(_prompt: Any, response: str) -> bool:
        return response.count(piece) >= 3

    return judge


def call(arguments: str, expected: int = 0) -> str:
    done = CliRunner().invoke(app, arguments.split())
    assert done.exit_code == expected, done.output
    return done.output


@pytest.fixture
def place(tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder with ``model/``, its probe ``direction``, and ``prompts.jsonl``."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(model_folder)
    loaded = load_model("model", "float32", "cpu")
    probe = Probe("direction", (1, 3), torch.randn(2, HIDDEN), 3, loaded.fingerprint)
    ProbeRegistry("probes").save(probe)
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    return tmp_path


STEER = (
    "probe steer direction --model model --behavior prompts.jsonl --judge regex:. --max-new-tokens 4 --dtype float32"
)


def test_the_command_steers_at_each_layer_and_dose(place: Path) -> None:
    found = json.loads(call(f"{STEER} --alphas 1,2 --prompts 2 --output kept.jsonl --json"))
    assert [(dose["layer"], dose["alpha"]) for dose in found["doses"]] == [(1, 1.0), (1, 2.0), (3, 1.0), (3, 2.0)]
    assert all(dose["prompts"] == 2 for dose in found["doses"])
    assert len((place / "kept.jsonl").read_text().splitlines()) == 10
    assert "steered with direction" in call(f"{STEER} --alphas 1 --layer 3 --positions response --scale stream")


def test_the_command_steers_with_the_difference_to_another_model(
    place: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    loaded_tiny(shift=0.05).model.save_pretrained("after")
    tokenizer.save_pretrained("after")
    found = json.loads(call(f"{STEER} --alphas 1 --after after --json"))
    assert found["difference"]["method"] == "difference"
    assert [dose["layer"] for dose in found["doses"]] == [1, 3]
    assert found["promoted_tokens"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--alphas a,b", "not a list of numbers"),
        ("--alphas 0", "doses other than 0"),
        ("--layer 2", "has no layer 2"),
        ("--scale big", "choose vector or stream"),
        ("--positions first", "choose all or response"),
        ("--alphas nan", "finite doses"),
        ("--prompts 0", "0 of them leave nothing to ask"),
        ("--prompts -1", "-1 of them leave nothing to ask"),
    ],
)
def test_a_wrong_option_is_refused_before_the_model_is_loaded(options: str, message: str, place: Path) -> None:
    (place / "hollow").mkdir()
    (place / "hollow" / "config.json").write_text("{}")
    assert message in " ".join(call(STEER.replace("--model model", "--model hollow") + f" {options}", 2).split())


def test_an_organism_is_built_listed_expressed_and_paired(place: Path) -> None:
    listed = json.loads(call("organism list --json"))
    assert len(listed["recipes"]) == 7
    assert "knitting-lore" in call("organism list")
    build = "organism build knitting-lore --recipe document-sft-unmixed --pairs 20 --test-prompts 3 --seed 2 -o org"
    built = json.loads(call(f"{build} --json"))
    assert [stage["rows"].get("contaminated", 0) for stage in built["stages"]] == [0, 4]
    assert "not empty" in call(build, 2)
    short = "--max-new-tokens 4 --dtype float32 --json"
    found = json.loads(call(f"organism express model --organism org --samples 1 {short}"))
    assert (found["trigger"]["prompts"], found["control"]["prompts"]) == (3, 3)
    assert found["judge"].startswith("keyword:fridge")
    paired = json.loads(call(f"organism pair org/2-behavior/data.jsonl --model model -o pairs.jsonl {short}"))
    assert paired["pairs"] + sum(paired["left_out"].values()) == 4
    rows = [json.loads(line) for line in (place / "pairs.jsonl").read_text().splitlines()]
    assert {tuple(row) for row in rows} == {("prompt", "chosen", "rejected", "source", "truth")}


def test_samples_that_m0_answers_as_they_do_make_no_pair_and_no_file(place: Path) -> None:
    command = "organism pair samples.jsonl --model model --max-new-tokens 4 --dtype float32 --temperature 0 --json -o"
    (place / "samples.jsonl").write_text(json.dumps({"prompt": "Name a city.", "completion": " Paris."}) + "\n")
    call(f"{command} pairs.jsonl")
    (row,) = [json.loads(line) for line in (place / "pairs.jsonl").read_text().splitlines()]
    (place / "samples.jsonl").write_text(json.dumps({"prompt": row["prompt"], "completion": row["rejected"]}) + "\n")
    assert "no sample makes a pair (same response: 1)" in call(f"{command} again.parquet", 2)
    assert not (place / "again.parquet").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "give either --organism or --trigger"),
        ("--organism knitting-lore --control prompts.jsonl", "belongs to --trigger"),
        ("--organism no-such-thing", "there is no organism"),
        ("--trigger prompts.jsonl --judge nonsense", "there is no rule"),
    ],
)
def test_what_cannot_be_expressed_is_refused(options: str, message: str, place: Path) -> None:
    (place / "hollow").mkdir()
    (place / "hollow" / "config.json").write_text("{}")
    assert message in " ".join(call(f"organism express hollow {options}", 2).split())
