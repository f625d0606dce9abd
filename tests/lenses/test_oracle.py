"""An activation oracle is given vectors as the formula says, names what it was taught, and leaves M0 as it was."""

from __future__ import annotations

import importlib.util
import json
import runpy
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel

from tests import naive
from tests.audit_cases import auditor_of, naive_vectors, pair_rows
from tests.discovery.test_discovery_cli import document, run
from tests.report_cases import save_discoveries
from tests.tiny import HIDDEN, build_tiny_model
from trl_attribution.behaviors.sampling import SamplingConfig
from trl_attribution.discovery.traits.trait import packaged_traits
from trl_attribution.errors import ModelError, SettingsError
from trl_attribution.lenses import PRESETS, Answers, Oracle, OracleConfig, injected, oracle_prompt, random_like
from trl_attribution.models import LoadedModel, load_model
from trl_attribution.probes import Probe, ProbeRegistry
from trl_attribution.store import VectorStore
from trl_attribution.utils.atomic import write_lines

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "oracle" / "train_oracle.py"
example = SimpleNamespace(**runpy.run_path(str(SCRIPT)))

LAYER = 3
QUESTION = "What?"
NAMES = ("bread", "garden", "letter", "Paris")
DIRECTIONS = torch.linalg.qr(torch.randn(HIDDEN, HIDDEN, generator=torch.Generator().manual_seed(3)))[0][: len(NAMES)]
GREEDY = SamplingConfig(n=1, max_new_tokens=8, temperature=0)


def config_of(loaded: LoadedModel, **changes: Any) -> OracleConfig:
    given: dict[str, Any] = {
        "layer": 1,
        "placeholder": "?",
        "template": "Layer {layer} {placeholders}\n{question}",
        "reads": (LAYER,),
        "model": loaded.fingerprint.to_json(),
    }
    return OracleConfig(**{**given, **changes})


def lessons() -> Iterator[Any]:
    """Each direction alone, with some noise, and its name."""
    draw = torch.Generator().manual_seed(0)
    while True:
        place = int(torch.randint(len(NAMES), (), generator=draw))
        noise = 0.1 * torch.randn(HIDDEN, generator=draw)
        yield example.Lesson(DIRECTIONS[place] + noise, QUESTION, NAMES[place])


@pytest.fixture(scope="module")
def loaded(model_folder: Path) -> LoadedModel:
    return load_model(model_folder, dtype="float32")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, loaded: LoadedModel, model_folder: Path) -> Path:
    """A folder with ``model/``, an oracle taught four directions, probes of them, and an audit with clusters."""
    folder = tmp_path_factory.mktemp("oracle")
    (folder / "model").symlink_to(model_folder)
    torch.manual_seed(0)
    taught = load_model(model_folder, dtype="float32")
    config = config_of(loaded)
    settings = example.Settings(steps=90, batch=8, learning_rate=2e-2, rank=4)
    example.train(taught, config, lessons(), LAYER, settings).save_pretrained(folder / "oracle")
    config.write(folder / "oracle" / "oracle.json")
    for name, direction in zip(NAMES, DIRECTIONS, strict=True):
        probe = Probe(name, (LAYER,), direction[None], LAYER, loaded.fingerprint)
        ProbeRegistry(folder / "probes").save(probe)
    write_lines(folder / "audited.jsonl", rows := pair_rows(6))
    auditor_of(loaded, layers=(LAYER,)).audit(folder / "audited.jsonl", folder / "audit")
    save_discoveries(folder / "audit", rows)
    return folder


@pytest.fixture(scope="module")
def oracle(place: Path, loaded: LoadedModel) -> Oracle:
    return Oracle.load(place / "oracle", loaded)


def changed_by_hand(stream: Tensor, vector: Tensor, places: list[int], config: OracleConfig) -> Tensor:
    """``[T, D]``, one placeholder at a time."""
    stream = stream.clone()
    for one in places:
        given = vector * (stream[one].norm() / vector.norm()) if config.norm_matched else vector
        given = config.coefficient * given
        stream[one] = stream[one] + given if config.how == "add" else given
    return stream


@torch.no_grad()
def logits_by_hand(
    model: PreTrainedModel, ids: list[int], vector: Tensor, places: list[int], config: OracleConfig
) -> Tensor:
    """``[T, V]``: the blocks below, the change, and the blocks above one after the other."""
    below = naive.hidden_states(model, ids, [config.layer])[0]
    stream = changed_by_hand(below, vector, places, config)[None]
    inner: Any = model.model
    rotary = inner.rotary_emb(stream, torch.arange(len(ids))[None])
    for block in inner.layers[config.layer :]:
        found = block(stream, position_embeddings=rotary, attention_mask=None)
        stream = found[0] if isinstance(found, tuple) else found
    logits: Tensor = model.lm_head(inner.norm(stream))[0]
    return logits


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"layer": 0},
        {"layer": 2, "coefficient": 2.5, "placeholders": 3, "placeholder": ","},
        {"how": "replace"},
        {"how": "replace", "norm_matched": False, "coefficient": 0.5},
        {"norm_matched": False},
    ],
    ids=str,
)
def test_vectors_go_in_as_the_formula_says(changes: dict[str, Any], loaded: LoadedModel) -> None:
    config = config_of(loaded, **changes)
    prompt = oracle_prompt(config, loaded, QUESTION, LAYER)
    vectors = 3 * torch.randn(2, HIDDEN)
    with torch.no_grad(), injected(loaded.model, vectors, prompt, config):
        found = loaded.model(input_ids=torch.tensor([prompt.ids] * 2)).logits
    untouched = loaded.model(input_ids=torch.tensor([prompt.ids])).logits[0]
    for logits, vector in zip(found, vectors, strict=True):
        expected = logits_by_hand(loaded.model, prompt.ids, vector, prompt.places, config)
        assert torch.allclose(logits, expected, atol=1e-4)
        assert not torch.allclose(logits, untouched, atol=1e-2)


def test_answers_are_those_of_the_adapter_asked_token_by_token(place: Path, oracle: Oracle) -> None:
    adapted: Any = PeftModel.from_pretrained(build_tiny_model("llama"), str(place / "oracle")).eval()
    prompt = oracle_prompt(oracle.config, oracle.loaded, QUESTION, LAYER)
    ids = list(prompt.ids)
    for _ in range(4):
        logits = logits_by_hand(adapted.get_base_model(), ids, DIRECTIONS[1], prompt.places, oracle.config)
        ids.append(int(logits[-1].argmax()))
    expected = oracle.loaded.tokenizer.decode(ids[len(prompt.ids) :], skip_special_tokens=True)
    short = SamplingConfig(n=1, max_new_tokens=4, temperature=0)
    assert oracle.say(DIRECTIONS[1:2], QUESTION, LAYER, short) == [expected]


def test_it_names_the_larger_part_of_mixtures_that_it_never_saw_and_knows_nothing_of_random_ones(
    oracle: Oracle,
) -> None:
    several = range(len(NAMES))
    mixed = [(one, other, share) for one in several for other in several for share in (0.6, 0.75) if one != other]
    vectors = torch.stack([share * DIRECTIONS[one] + (1 - share) * DIRECTIONS[other] for one, other, share in mixed])
    wanted = [NAMES[one] for one, _, _ in mixed]
    named = oracle.say(vectors, QUESTION, LAYER, GREEDY)
    drawn = oracle.say(random_like(vectors[0], len(wanted)), QUESTION, LAYER, GREEDY)
    right = sum(name == text for name, text in zip(wanted, named, strict=True)) / len(wanted)
    by_chance = sum(name == text for name, text in zip(wanted, drawn, strict=True)) / len(wanted)
    assert right >= 0.75 and by_chance <= 0.5  # of four names


def test_each_answer_stands_beside_those_to_random_vectors_and_to_others(oracle: Oracle) -> None:
    sampling = SamplingConfig(n=2, max_new_tokens=8, temperature=0.2, seed=4)
    questions = [QUESTION, "Is it harmful?"]
    found = oracle.ask(DIRECTIONS[0], questions, LAYER, sampling, {"garden": DIRECTIONS[1]})
    assert [one.question for one in found] == questions
    drawn = random_like(DIRECTIONS[0], 2, seed=4)
    assert torch.allclose(drawn.norm(dim=-1), DIRECTIONS[0].norm().expand(2)) and not torch.equal(drawn[0], drawn[1])
    rows = torch.stack([DIRECTIONS[0], DIRECTIONS[0], *drawn, DIRECTIONS[1], DIRECTIONS[1]])
    expected = oracle.say(rows, QUESTION, LAYER, sampling)
    first = found[0]
    assert [*first.answers, *first.random, *first.others["garden"]] == expected
    assert oracle.ask(DIRECTIONS[0], questions, LAYER, sampling, {"garden": DIRECTIONS[1]}) == found


def test_nothing_of_it_stays_on_the_model(oracle: Oracle) -> None:
    model = oracle.loaded.model
    ids = torch.tensor([[5, 6, 7, 8, 9]])

    def state() -> tuple[object, ...]:
        modules = [(name, type(one), one.training, len(one._forward_hooks)) for name, one in model.named_modules()]
        return modules, [(name, one.requires_grad) for name, one in model.named_parameters()], sorted(vars(model))

    model.gradient_checkpointing_enable()
    model.model.layers[0].train()  # of a run that is not over
    before, logits = state(), model(ids).logits
    oracle.ask(DIRECTIONS[0], [QUESTION], LAYER, GREEDY)
    assert state() == before and torch.equal(model(ids).logits, logits)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    handle = model.model.layers[3].register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        oracle.ask(DIRECTIONS[0], [QUESTION], LAYER, GREEDY)
    handle.remove()
    assert state() == before and torch.equal(model(ids).logits, logits)
    model.gradient_checkpointing_disable()
    model.eval()


def test_the_published_oracles_are_asked_as_they_were_trained() -> None:
    preset = PRESETS["activation-oracles"]
    assert preset.prompt("What {layer}?", 20) == "Layer: 19\n ? \nWhat {layer}?"
    assert (preset.layer, preset.how, preset.norm_matched, preset.coefficient) == (2, "add", True, 1.0)
    several = preset.model_copy(update={"placeholders": 3})
    assert several.prompt("Q", 1) == "Layer: 0\n ? ? ? \nQ"


def of_another_width(folder: Path) -> None:
    lora = LoraConfig(target_modules=["q_proj"])
    other = build_tiny_model("llama").config
    other.hidden_size, other.head_dim = 2 * HIDDEN, 8
    model = get_peft_model(type(build_tiny_model("llama"))(other), lora)
    model.save_pretrained(str(folder))
    named = json.loads((folder / "adapter_config.json").read_text()) | {"base_model_name_or_path": "other/base"}
    (folder / "adapter_config.json").write_text(json.dumps(named))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ({"remove": "adapter_model.safetensors"}, "no adapter_model.safetensors. Give the folder of a LoRA adapter"),
        ({"remove": "oracle.json"}, "does not say how its oracle is asked: it has no oracle.json"),
        ({"config": {"placeholder": "placeholder"}}, "splits the oracle's placeholder 'placeholder' into"),
        ({"config": {"placeholder": "?", "template": "{placeholders}{question}", "placeholders": 2}}, None),
        ({"config": {"layer": 9}}, "choose from 0"),
        ({"config": {"model": {"config": "a", "weights": "b", "chat_template": "c"}}}, "is one of another model than"),
        ({"config": {"model": {}}}, "its model has no 'config'"),
        ({"config": {"template": "{question} {placeholders}"}}, "must have {placeholders}, and {question} after it"),
        ({"config": {"coefficient": 0}}, "field 'coefficient'"),
        ({"config": {"how": "pickle"}}, "field 'how'"),
        ({"adapter": {"bias": "all"}}, "its bias would change the model beyond the time"),
        ({"adapter": {"init_lora_weights": "pissa"}}, "its init_lora_weights would change the model"),
        ({"adapter": {"layer_replication": [[0, 2], [1, 4]]}}, "its layer_replication would change the model"),
        ({"adapter": {"alora_invocation_tokens": [5]}}, "its alora_invocation_tokens would change the model"),
        ({"adapter": {"target_modules": ["nowhere"]}}, "does not fit"),
        ({"adapter": {"target_modules": ["q_proj", "input_layernorm"]}}, "does not fit"),  # seen when half is on
    ],
    ids=str,
)
def test_an_oracle_that_does_not_fit_is_refused(
    spoil: dict[str, Any], said: str | None, place: Path, loaded: LoadedModel, tmp_path: Path
) -> None:
    folder = shutil.copytree(place / "oracle", tmp_path / "spoiled")
    if "remove" in spoil:
        (folder / spoil["remove"]).unlink()
    for file, name in (("oracle.json", "config"), ("adapter_config.json", "adapter")):
        if name in spoil:
            values = json.loads((folder / file).read_text())
            (folder / file).write_text(json.dumps({**values, **spoil[name]}))
    if said is None:
        Oracle.load(folder, loaded)
        return
    before = list(loaded.model.modules())
    with pytest.raises(ModelError) as refused:
        Oracle.load(folder, loaded)
    assert said in " ".join(str(refused.value).split())
    assert not hasattr(loaded.model, "peft_config") and list(loaded.model.modules()) == before


def test_an_oracle_of_a_wider_model_is_refused(loaded: LoadedModel, tmp_path: Path) -> None:
    of_another_width(tmp_path)
    OracleConfig(layer=1, placeholder="?").write(tmp_path / "oracle.json")
    with pytest.raises(ModelError, match=r"does not fit .* It was trained on other/base"):
        Oracle.load(tmp_path, loaded)
    assert not hasattr(loaded.model, "peft_config")


def test_without_peft_the_way_to_have_it_is_said(
    place: Path, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "peft" else there(name, *more))
    with pytest.raises(ModelError, match="pip install peft$"):
        Oracle.load(place / "oracle", loaded)


@pytest.mark.parametrize(
    ("vector", "questions", "layer", "said"),
    [
        (torch.zeros(HIDDEN), [QUESTION], LAYER, "not zero"),
        (torch.full((HIDDEN,), torch.nan), [QUESTION], LAYER, "finite"),
        (torch.ones(HIDDEN + 1), [QUESTION], LAYER, "must be"),
        (torch.ones(HIDDEN), [], LAYER, "at least one question"),
        (torch.ones(HIDDEN), [" "], LAYER, "no empty one"),
        (torch.ones(HIDDEN), [QUESTION], 2, "trained to read layer 3, not 2"),
    ],
)
def test_what_cannot_be_asked_is_said(
    vector: Tensor, questions: list[str], layer: int, said: str, oracle: Oracle
) -> None:
    with pytest.raises(SettingsError, match=said):
        oracle.ask(vector, questions, layer)


ASK = "--oracle oracle --model model --dtype float32 --temperature 0 --samples 1 --max-new-tokens 8"


def test_a_probe_is_asked_about_beside_the_least_alike(place: Path) -> None:
    found = document(run(place, f"probe ask garden {QUESTION} {ASK} --json"))
    (answers,) = found["answers"]
    assert found["asked"] == "probe garden" and found["layer"] == LAYER
    assert answers["question"] == QUESTION and answers["answers"] == ["garden"]
    (other,) = answers["others"]
    assert answers["others"][other] == [other.removeprefix("probe ")] and other != "probe garden"
    assert len(answers["random"]) == 1 and found["oracle"]["layer"] == 1
    shown = " ".join(run(place, f"probe ask garden {QUESTION} {ASK}").output.split())
    assert "A model's words, not a measurement" in shown and "probe garden, layer 3" in shown
    assert "random vectors" in shown and "0 of 1 answer to it are given to another vector" in shown


def test_clusters_and_pairs_are_asked_about(place: Path, loaded: LoadedModel) -> None:
    for name, asked in (("b1", "cluster b1"), ("p1", "cluster p1"), (pair_of(place), "pair")):
        found = document(run(place, f"probe ask {name} {QUESTION} Why? {ASK} --audit audit --json"))
        assert found["asked"].startswith(asked) and found["layer"] == LAYER
        assert [one["question"] for one in found["answers"]] == [QUESTION, "Why?"]
        assert len(found["answers"][0]["others"]) == 1  # a probe of the same M0


def test_without_another_probe_random_vectors_are_the_controls(place: Path) -> None:
    (place / "none").mkdir()
    found = document(run(place, f"probe ask b1 {QUESTION} {ASK} --audit audit --probes none --json"))
    assert found["answers"][0]["others"] == {} and len(found["answers"][0]["random"]) == 1


def test_a_layer_that_it_does_not_read_is_refused_before_a_model_is_loaded(
    place: Path, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(place / "oracle", place / "lower")
    config_of(loaded, reads=(1, 2)).write(place / "lower" / "oracle.json")
    monkeypatch.setattr("trl_attribution.models.load_model", lambda *_, **__: pytest.fail("loaded"))
    refused = run(place, f"probe ask garden {QUESTION} {ASK.replace('oracle oracle', 'oracle lower')}", expected=2)
    assert "trained to read layer 1 and 2, not 3" in " ".join(refused.output.split())


def pair_of(place: Path) -> str:
    return VectorStore.open(place / "audit" / "vectors").pair_ids[2]


def test_a_pair_is_asked_about_by_its_vector(place: Path, oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Tensor] = []

    def noted(_self: Oracle, vector: Tensor, *_: object) -> list[Answers]:
        asked.append(vector)
        return []

    monkeypatch.setattr(Oracle, "ask", noted)
    run(place, f"probe ask {pair_of(place)} {QUESTION} {ASK} --audit audit")
    vectors, _ = naive_vectors(oracle.loaded, pair_rows(6), (LAYER,))
    assert any(torch.allclose(asked[0], one[0], atol=1e-4) for one in vectors)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (f"probe ask garden {QUESTION} --oracle nowhere --model model", "cannot read the oracle nowhere"),
        (f"probe ask garden {QUESTION} --oracle model --model model", "no oracle at model: it has no adapter_config"),
        (f"probe ask nobody {QUESTION} {ASK}", "nobody"),
        (f"probe ask garden {QUESTION} {ASK} --oracle-preset x", "'x' is unknown; choose activation-oracles"),
        (f"probe ask garden {QUESTION} {ASK} --oracle-preset activation-oracles", "leave the preset out"),
        (f"probe ask garden {QUESTION} {ASK} --discovery audit", "--discovery: only says something about --audit"),
        (f"probe ask b9 {QUESTION} {ASK} --audit audit", "cluster 'b9' was not found"),
        (f"probe ask {'0' * 32} {QUESTION} {ASK} --audit audit", "lacks 1 of the pairs asked for"),
        (f"probe ask garden {QUESTION} {ASK} --layer 2", "has no layer 2"),
    ],
)
def test_what_cannot_work_is_said(place: Path, arguments: str, said: str) -> None:
    assert said in " ".join(run(place, arguments, expected=2).output.split())


def test_answers_are_printed_without_their_control_characters(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Oracle, "say", lambda _self, vectors, *_: ["\x1b[31mred\u202e"] * len(vectors))
    shown = run(place, f"probe ask garden {QUESTION} {ASK}").output
    assert "\x1b" not in shown and "\u202e" not in shown and "red" in shown


def test_the_example_trains_one_that_can_be_asked(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left_out = [one.name for one in packaged_traits() if one.examples][2:]
    words = ["model", "made", "--layer", "3", "--inject", "1", "--steps", "2", "--batch", "2", "--placeholder", "?"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *words, "--hold-out", *left_out])
    monkeypatch.chdir(place)
    runpy.run_path(str(SCRIPT), run_name="__main__")
    found = document(run(place, f"probe ask garden {QUESTION} {ASK.replace('oracle oracle', 'oracle made')} --json"))
    assert len(found["answers"]) == 1
