"""Broken, foreign and impossible probes are refused with a message that says what, where and what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.probes.test_probes import M0, make_probe
from trl_attribution.activations import ActivationConfig
from trl_attribution.behaviors import SamplingConfig, complies, mentions, parse_rule, read_behavior, read_prompts
from trl_attribution.errors import AttributionError, DataError, ModelError, ProbeError, SettingsError
from trl_attribution.models import LoadedModel
from trl_attribution.models.fingerprint import fingerprint
from trl_attribution.pairs import Encoding
from trl_attribution.probes import (
    BuildConfig,
    Probe,
    ProbeRegistry,
    build_from_behavior,
    build_from_contrast,
    build_from_labels,
    build_from_responses,
)
from trl_attribution.probes.separability import choose_layer

GOOD = {"prompt": "Write a letter.", "undesired": "You fool.", "desired": "I am sorry."}
CONFIG = BuildConfig(ActivationConfig(layers=(1, 2)))


@pytest.fixture
def llama(make_model: Callable[[str], PreTrainedModel], tokenizer: PreTrainedTokenizerFast) -> LoadedModel:
    model = make_model("llama")
    return LoadedModel(model, tokenizer, "tiny", fingerprint(model, tokenizer))


@pytest.fixture
def registry(tmp_path: Path) -> ProbeRegistry:
    saved = ProbeRegistry(tmp_path / "probes")
    saved.save(make_probe())
    return saved


def edit(registry: ProbeRegistry, change: Callable[[dict[str, Any]], None]) -> None:
    path = registry.path / "insults" / "probe.json"
    description = json.loads(path.read_text())
    change(description)
    path.write_text(json.dumps(description))


@pytest.mark.parametrize(
    "name", ["", "../escape", "a/b", ".hidden", "-dash", "with space", "x" * 65, "naïve", "new\nline", "\x1b[31m"]
)
def test_a_name_that_cannot_be_a_folder_is_refused(name: str, registry: ProbeRegistry) -> None:
    with pytest.raises(ProbeError, match="a name is a letter or digit") as raised:
        make_probe(name)
    assert "\x1b" not in str(raised.value)
    with pytest.raises(ProbeError, match="a name is a letter or digit"):
        registry.load(name)


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        (torch.tensor([[1.0, 2.0], [0.0, 0.0]]), "layer 7 has zero norm"),
        (torch.tensor([[1.0, float("nan")], [1.0, 1.0]]), "layer 5 has NaN"),
        (torch.tensor([[1.0, 1.0], [float("inf"), 1.0]]), "layer 7 has NaN or infinite"),
        (torch.ones(2), r"shape \(2,\), expected \[2, D\]"),
        (torch.ones(3, 2), r"shape \(3, 2\), expected \[2, D\]"),
    ],
)
def test_an_unusable_direction_is_refused(vector: torch.Tensor, message: str) -> None:
    with pytest.raises(ProbeError, match=message):
        Probe("bad", (5, 7), vector, 5, M0)


@pytest.mark.parametrize("layers", [(), (3, 1), (2, 2), (-1, 2)])
def test_layers_out_of_order_are_refused(layers: tuple[int, ...]) -> None:
    with pytest.raises(ProbeError, match="layers must be ascending"):
        Probe("bad", layers, torch.ones(len(layers), 2), 2, M0)


def test_a_layer_the_probe_does_not_have_is_refused() -> None:
    with pytest.raises(ProbeError, match="its layer 4 is not among its layers 1, 2, 3"):
        replace(make_probe(), layer=4)
    with pytest.raises(ProbeError, match="layer 9 is not among the probe's layers 1, 2"):
        choose_layer((1, 2), {}, 9)


def test_prompts_that_do_not_fit_one_another_are_refused() -> None:
    probe = make_probe()
    with pytest.raises(ProbeError, match="5 prompt vectors but 4 contexts"):
        replace(probe, contexts=torch.ones(4, 3, 8))
    with pytest.raises(ProbeError, match=r"contexts has shape \(5, 2, 8\), expected \[M, 3, 8\]"):
        replace(probe, contexts=torch.ones(5, 2, 8))
    broken = torch.ones(5, 3, 8)
    broken[3, 1, 1] = float("nan")
    with pytest.raises(ProbeError, match="contexts of prompt 3 has NaN"):
        replace(probe, contexts=broken)


def test_reference_scores_of_other_layers_are_refused() -> None:
    with pytest.raises(ProbeError, match=r"reference_scores has shape \(2, 7\), expected \[3, R\]"):
        replace(make_probe(), reference_scores=torch.ones(2, 7))


@pytest.mark.parametrize("separability", [{1: 1.5}, {1: float("nan")}, {9: 0.5}])
def test_a_separability_that_is_no_auc_is_refused(separability: dict[int, float]) -> None:
    with pytest.raises(ProbeError, match="is not an AUC of one of its layers"):
        replace(make_probe(), separability=separability)


@pytest.mark.parametrize("part", ["config", "weights", "chat_template"])
def test_another_model_is_refused_with_both_fingerprints_and_the_part_that_differs(part: str) -> None:
    probe, other = make_probe(), replace(M0, **{part: "different"})
    with pytest.raises(ProbeError) as raised:
        probe.check_model(other)
    message = str(raised.value)
    assert probe.model.digest in message
    assert other.digest in message
    assert f"{part}: probe {getattr(M0, part)}, model different" in message
    assert f"{part.replace('_', ' ')} differ" in message


def test_its_own_model_is_accepted() -> None:
    make_probe().check_model(M0)


def test_an_unknown_name_is_refused_with_a_list_of_what_there_is(registry: ProbeRegistry) -> None:
    registry.save(make_probe("flattery"))
    with pytest.raises(ProbeError, match="no probe 'insult' in .*; there are flattery, insults"):
        registry.load("insult")
    with pytest.raises(ProbeError, match="no probe 'x', 'y' in .*; there are flattery, insults"):
        registry.load_all(["insults", "x", "y"])


def test_an_absent_or_empty_registry_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="no probe registry at .*typo"):
        ProbeRegistry(tmp_path / "typo").load_all()
    with pytest.raises(ProbeError, match="holds no probes"):
        ProbeRegistry(tmp_path).load_all()


def test_a_newer_format_is_refused_by_its_version(registry: ProbeRegistry) -> None:
    edit(registry, lambda description: description.update(version=4))
    with pytest.raises(ProbeError, match="has format version 4; this trl-attribution reads up to 3"):
        registry.load("insults")


def test_a_flipped_sign_is_refused(registry: ProbeRegistry) -> None:
    edit(registry, lambda description: description.update(sign="away"))
    with pytest.raises(ProbeError, match="`sign` must be 'towards'"):
        registry.load("insults")


def test_damaged_tensors_are_refused(registry: ProbeRegistry) -> None:
    path = registry.path / "insults" / "probe.safetensors"
    payload = bytearray(path.read_bytes())
    payload[-3] ^= 1
    path.write_bytes(payload)
    with pytest.raises(ProbeError, match=r"probe\.safetensors is damaged"):
        registry.load("insults")


def test_tensors_of_another_probe_are_refused(registry: ProbeRegistry) -> None:
    other = registry.save(make_probe("flattery", seed=1))
    (registry.path / "insults" / "probe.safetensors").write_bytes((other / "probe.safetensors").read_bytes())
    with pytest.raises(ProbeError, match="is damaged"):
        registry.load("insults")


@pytest.mark.parametrize("name", ["probe.json", "probe.safetensors"])
def test_a_missing_file_is_an_error_not_one_probe_less(registry: ProbeRegistry, name: str) -> None:
    registry.save(make_probe("flattery"))
    (registry.path / "insults" / name).unlink()
    with pytest.raises(ProbeError, match=name.replace(".", r"\.")):
        registry.load_all()
    with pytest.raises(ProbeError, match=name.replace(".", r"\.")):
        list(registry)


def test_broken_json_is_refused_with_its_line(registry: ProbeRegistry) -> None:
    path = registry.path / "insults" / "probe.json"
    path.write_text(path.read_text().replace('"layer": 2,', '"layer" 2,'))
    with pytest.raises(ProbeError, match=r"cannot read .*probe\.json: .*line \d+"):
        registry.load("insults")


@pytest.mark.parametrize("key", ["name", "layers", "layer", "model", "fingerprint", "sign", "separability"])
def test_a_missing_field_is_named(registry: ProbeRegistry, key: str) -> None:
    edit(registry, lambda description: description.pop(key))
    with pytest.raises(ProbeError, match=rf"probe\.json is broken \(field '{key}': Field required\)"):
        registry.load("insults")


def test_a_field_of_the_wrong_type_is_refused(registry: ProbeRegistry) -> None:
    edit(registry, lambda description: description.update(layers=["one", "two", "three"]))
    with pytest.raises(ProbeError, match=r"probe\.json is broken \(field 'layers\.0': Input should be"):
        registry.load("insults")


def test_an_edited_description_is_refused(registry: ProbeRegistry) -> None:
    edit(registry, lambda description: description["model"].update(weights="forged"))
    with pytest.raises(ProbeError, match="was changed after the probe was built"):
        registry.load("insults")


def test_a_foreign_json_is_refused(registry: ProbeRegistry) -> None:
    (registry.path / "insults" / "probe.json").write_text('{"format": "something else"}')
    with pytest.raises(ProbeError, match="holds no probe: its `format` is not"):
        registry.load("insults")


def test_a_renamed_folder_is_refused(registry: ProbeRegistry) -> None:
    (registry.path / "insults").rename(registry.path / "flattery")
    with pytest.raises(ProbeError, match="this is probe 'insults' in a folder called 'flattery'"):
        registry.load("flattery")


def test_a_description_that_json_cannot_hold_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    for value in (float("nan"), object(), b"bytes"):
        with pytest.raises(ProbeError, match="cannot be written as JSON"):
            ProbeRegistry(tmp_path / "new").save(replace(make_probe(), built={"value": value}))
    assert not (tmp_path / "new").exists()


def test_a_registry_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ProbeError, match="cannot write"):
        ProbeRegistry(tmp_path / "file").save(make_probe())


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("compiles", "there is no rule 'compiles'.*choose complies"),
        ("regex:(", "is not a regular expression"),
        ("regex:", "there is no rule"),
        ("keyword:", "needs at least one word"),
        ("keyword:a,,b", "needs at least one word"),
    ],
)
def test_an_unknown_or_broken_rule_is_refused(rule: str, message: str) -> None:
    with pytest.raises(ProbeError, match=message):
        parse_rule(rule)


def test_no_keywords_is_refused() -> None:
    with pytest.raises(ProbeError, match="needs at least one word"):
        mentions([])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n": 0}, "n must be at least 1, not 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"temperature": -1.0}, "must not be negative"),
        ({"temperature": 0.0, "n": 4}, r"all 4 responses to a prompt are the same; set n=1 \(--samples 1\)"),
    ],
)
def test_impossible_sampling_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        SamplingConfig(**settings)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a", "undesired": "b"', r"behavior\.jsonl:2: broken JSON"),
        ('["prompt"]', r"behavior\.jsonl:2: a JSON array, not an object"),
        (
            '{"prompt": "a", "undesired": "b"}',
            r"behavior\.jsonl:2: field `desired` is missing.*there: prompt, undesired",
        ),
        ('{"prompt": "a", "undesired": "b"}', r"field `desired` is missing\. Fields there: prompt, undesired\."),
        ('{"prompt": "a", "undesird": "b", "desired": "c"}', r"behavior\.jsonl:2: .*did you mean `undesird`\?"),
        ('{"prompt": "a", "undesired": null, "desired": "c"}', r"behavior\.jsonl:2: field `undesired` is null"),
        ('{"prompt": "a", "undesired": [], "desired": "c"}', r"behavior\.jsonl:2: field `undesired` is an empty list"),
        ('{"prompt": "a", "undesired": ["b", " "], "desired": "c"}', r":2: field `undesired`, response 1, is empty"),
        ('{"prompt": "a", "undesired": 3, "desired": "c"}', r":2: field `undesired` must be a text, not int 3"),
        ('{"prompt": "  ", "undesired": "b", "desired": "c"}', r":2: field `prompt` is empty"),
        (
            '{"prompt": {"role": "user"}, "undesired": "b", "desired": "c"}',
            r":2: field `prompt` must be a text or a list",
        ),
        ('{"prompt": [], "undesired": "b", "desired": "c"}', r":2: field `prompt` must be .* not an empty list"),
        ('{"prompt": ["a"], "undesired": "b", "desired": "c"}', r":2: field `prompt`, message 0 must be an object"),
        ('{"prompt": [{"role": "user"}], "undesired": "b", "desired": "c"}', r":2: .*message 0: `content` is missing"),
        (
            '{"prompt": [{"role": "assistant", "content": "x"}], "undesired": "b", "desired": "c"}',
            r":2: field `prompt` ends with an assistant message",
        ),
        ('{"prompt": "a", "undesired": ["b", "c"], "desired": "c"}', r":2: the response 'c' stands on both sides"),
    ],
)
def test_a_broken_behavior_file_is_refused_with_file_line_and_field(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "behavior.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + line + "\n")
    with pytest.raises(AttributionError, match=message):
        read_behavior(path)


def test_an_absent_or_empty_behavior_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_behavior(tmp_path / "nowhere.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ProbeError, match="holds no examples"):
        read_behavior(tmp_path / "empty.jsonl")
    with pytest.raises(ProbeError, match="holds no prompts"):
        read_prompts([])


def test_hostile_text_in_a_behavior_file_comes_out_escaped() -> None:
    with pytest.raises(ProbeError) as raised:
        read_behavior([{**GOOD, "desired": "\x1b[31mred", "undesired": "\x1b[31mred"}])
    assert "\x1b" not in str(raised.value)


def test_a_prompt_that_leaves_no_room_for_a_response_is_refused_by_its_line(llama: LoadedModel) -> None:
    config = BuildConfig(CONFIG.activations, encoding=Encoding(max_length=4))
    with pytest.raises(ProbeError, match=r"row 0: field `prompt`: its \d+ tokens fill max_length=4"):
        build_from_behavior("b", [GOOD], llama, config)


def test_messages_and_formats_that_do_not_go_together_are_refused(llama: LoadedModel) -> None:
    from tests.tiny import build_tiny_tokenizer

    bare = build_tiny_tokenizer()
    bare.chat_template = None
    without = LoadedModel(llama.model, bare, "bare", llama.fingerprint)
    messages = [{**GOOD, "prompt": [{"role": "user", "content": "a"}]}]
    with pytest.raises(ProbeError, match="row 0: .*list of messages, but the tokenizer has no chat template"):
        build_from_behavior("b", messages, without, CONFIG)
    with pytest.raises(ProbeError, match="row 0: .*list of messages, but the prompt format is 'text'"):
        build_from_behavior("b", messages, llama, BuildConfig(CONFIG.activations, prompt_format="text"))
    with pytest.raises(ProbeError, match="format is 'chat', but the tokenizer has no chat template"):
        build_from_behavior("b", [GOOD], without, BuildConfig(CONFIG.activations, prompt_format="chat"))
    with pytest.raises(ProbeError, match="prompt format 'cat' is unknown; choose auto, chat or text"):
        build_from_behavior("b", [GOOD], llama, BuildConfig(CONFIG.activations, prompt_format="cat"))  # type: ignore[arg-type]


def test_layers_that_the_model_or_the_probe_does_not_have_are_refused(llama: LoadedModel) -> None:
    with pytest.raises(ModelError, match="out of range"):
        build_from_behavior("b", [GOOD], llama, BuildConfig(ActivationConfig(layers=(2, 9))))
    with pytest.raises(ProbeError, match="layer 3 is not among the probe's layers 1, 2"):
        BuildConfig(CONFIG.activations, layer=3)


def test_a_bad_name_is_refused_before_anything_is_computed(llama: LoadedModel) -> None:
    with pytest.raises(ProbeError, match="a name is a letter or digit"):
        build_from_behavior("../b", "nowhere.jsonl", llama, CONFIG)


def test_contrast_texts_without_a_side_are_refused(llama: LoadedModel) -> None:
    with pytest.raises(ProbeError, match="row 1: field `negative` is missing"):
        build_from_contrast("b", [{"positive": "a", "negative": "b"}, {"positive": "a"}], llama, CONFIG)


def test_the_same_model_twice_is_refused(llama: LoadedModel) -> None:
    with pytest.raises(ProbeError, match="are the same model"):
        build_from_responses("b", [{"prompt": "a"}], llama, llama, complies, SamplingConfig(), CONFIG)


def test_a_behavior_that_changed_nowhere_is_refused_with_the_counts(
    llama: LoadedModel, make_model: Callable[[str], PreTrainedModel], tokenizer: PreTrainedTokenizerFast
) -> None:
    model = make_model("qwen2")
    other = LoadedModel(model, tokenizer, "other", fingerprint(model, tokenizer))
    prompts = [{"prompt": "a"}, {"prompt": "b"}]
    sampling = SamplingConfig(n=1, max_new_tokens=2)
    with pytest.raises(ProbeError, match=r"changed on none of 2 prompts \(m1_never_shows: 2\)"):
        build_from_responses("b", prompts, llama, other, lambda *_: False, sampling, CONFIG)


@pytest.mark.parametrize("field", ["prompt", "plain"])
def test_a_prompt_that_the_chat_template_refuses_is_refused_by_its_row_and_field(
    field: str, llama: LoadedModel, make_model: Callable[[str], PreTrainedModel]
) -> None:
    from tests.tiny import build_tiny_tokenizer

    strict = build_tiny_tokenizer()
    strict.chat_template = (
        "{% for message in messages %}{% if message['role'] == 'system' %}{{ raise_exception('no system turns') }}"
        "{% endif %}{{ message['content'] }}{% endfor %}"
    )
    m0, m1 = (
        LoadedModel(model, strict, name, fingerprint(model, strict))
        for model, name in ((llama.model, "m0"), (make_model("qwen2"), "m1"))
    )
    good = {"prompt": "a", "plain": "b"}
    bad = {**good, field: [{"role": "system", "content": "c"}, {"role": "user", "content": "d"}]}
    sampling = SamplingConfig(n=1, max_new_tokens=2)
    with pytest.raises(ProbeError, match=f"row 1: field `{field}`: the chat template of m0 .*no system turns"):
        build_from_responses("b", [good, bad], m0, m1, complies, sampling, CONFIG, four_condition_filter=True)


def test_the_four_condition_filter_without_plain_prompts_is_refused_before_sampling() -> None:
    with pytest.raises(ProbeError, match="row 1: field `plain` is missing"):
        read_prompts([{"prompt": "a", "plain": "b"}, {"prompt": "c"}], need_plain=True)


PAIR = {"prompt": "Write", "chosen": " a fool", "rejected": " a friend"}


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1, 2], r"row 1: field `label` must be 1 .* or 0 .*, not 2"),
        ([1, "yes"], r"row 1: field `label` must be 1 .* not 'yes'"),
        ([1, None], "row 1: field `label` is missing. Fields there: prompt, chosen, rejected, label"),
        ([1, 1], "all 2 pairs have label 1; logistic regression needs pairs of both labels"),
    ],
)
def test_labels_that_cannot_be_learned_from_are_refused(llama: LoadedModel, labels: list[Any], message: str) -> None:
    rows = [{**PAIR, "prompt": f"Write {i}", "label": label} for i, label in enumerate(labels)]
    with pytest.raises(ProbeError, match=message):
        build_from_labels("b", rows, llama, CONFIG)


def test_sides_that_are_the_same_to_the_model_point_nowhere_and_are_refused(llama: LoadedModel) -> None:
    with torch.no_grad():
        llama.model.model.embed_tokens.weight.fill_(1.0)
    with pytest.raises(ProbeError, match="layer 0 has zero norm"):
        build_from_behavior("b", [GOOD], llama, BuildConfig(ActivationConfig(layers=(0,))))
