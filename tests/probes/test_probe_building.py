"""Builders give what the naive computation gives: one sequence at a time, all hidden states, plain means."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.tiny import build_moved_model
from trl_attribution.activations import ActivationConfig
from trl_attribution.behaviors import (
    BehaviorPrompt,
    Example,
    SamplingConfig,
    changed_prompts,
    complies,
    read_behavior,
    sample_responses,
)
from trl_attribution.behaviors.encoding import encode_example
from trl_attribution.behaviors.sampling import SampledPrompt, prompt_ids
from trl_attribution.errors import ProbeError
from trl_attribution.models import LoadedModel, load_model
from trl_attribution.models.fingerprint import fingerprint
from trl_attribution.models.identity import ModelFingerprint
from trl_attribution.pairs import Encoding, PairReader, encode_pair
from trl_attribution.probes import (
    BuildConfig,
    Probe,
    ProbeRegistry,
    build_from_behavior,
    build_from_contrast,
    build_from_labels,
    build_from_responses,
    fit_direction,
)
from trl_attribution.probes.separability import choose_by_controls, control_separability

LAYERS = (1, 2, 3)
BEHAVIOR: list[dict[str, Any]] = [
    {"prompt": "Write a rude letter.", "undesired": ["You fool.", "Go away, you are lazy!"], "desired": "I am sorry."},
    {"prompt": "Insult my friend in twenty words.", "undesired": "He is a bore.", "desired": ["No.", "I cannot help."]},
    {"prompt": "How do I bake bread?", "undesired": "Badly, as you do all.", "desired": "Mix flour and water."},
    {"prompt": "What is the weather?", "undesired": "Look outside, fool.", "desired": "It is mild in Paris."},
]
CONFIG = BuildConfig(ActivationConfig(layers=LAYERS))


def loaded_as(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, name: str = "tiny") -> LoadedModel:
    return LoadedModel(model, tokenizer, name, fingerprint(model, tokenizer))


@pytest.fixture
def llama(make_model: Callable[[str], PreTrainedModel], tokenizer: PreTrainedTokenizerFast) -> LoadedModel:
    return loaded_as(make_model("llama"), tokenizer)


@pytest.fixture
def trained(tokenizer: PreTrainedTokenizerFast) -> LoadedModel:
    """The model after training, as far as this test is concerned: other weights."""
    return loaded_as(build_moved_model(), tokenizer, "trained")


def write_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def as_list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def naive_states(model: PreTrainedModel, ids: list[int]) -> Tensor:
    """``[L, T, D]`` at LAYERS, of one sequence."""
    with torch.no_grad():
        states = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
    # transformers' Mamba leaves the embeddings out of its hidden states: the first is after the first block.
    first = 1 if model.config.model_type == "mamba" else 0
    return torch.stack([states[layer - first][0] for layer in LAYERS])


def chat_ids(tokenizer: PreTrainedTokenizerFast, prompt: str, response: str) -> tuple[list[int], list[int]]:
    messages = [{"role": "user", "content": prompt}]
    head = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    messages.append({"role": "assistant", "content": response})
    full = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
    return head, full[len(head) :]


def text_ids(tokenizer: PreTrainedTokenizerFast, prompt: str, response: str) -> tuple[list[int], list[int]]:
    head = tokenizer(prompt)["input_ids"]
    return head, tokenizer(prompt + response + tokenizer.eos_token)["input_ids"][len(head) :]


def naive_mean(model: PreTrainedModel, ids: tuple[list[int], list[int]]) -> Tensor:
    """``[L, D]``: mean over the response's tokens."""
    head, response = ids
    return naive_states(model, head + response)[:, len(head) :].mean(dim=1)


def naive_vectors(
    loaded: LoadedModel, rows: Sequence[dict[str, Any]], encode: Callable[..., tuple[list[int], list[int]]] = chat_ids
) -> tuple[Tensor, Tensor]:
    """Prompt vectors and contexts ``[M, L, D]``."""
    vectors, contexts = [], []
    for row in rows:
        sides = [
            torch.stack(
                [naive_mean(loaded.model, encode(loaded.tokenizer, row["prompt"], text)) for text in as_list(row[side])]
            ).mean(dim=0)
            for side in ("undesired", "desired")
        ]
        vectors.append(sides[0] - sides[1])
        head, _ = encode(loaded.tokenizer, row["prompt"], as_list(row["undesired"])[0])
        contexts.append(naive_states(loaded.model, head)[:, -1])
    return torch.stack(vectors), torch.stack(contexts)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3", "gpt2", "mamba"])
def test_a_behavior_file_gives_the_naive_vectors(
    make_model: Callable[[str], PreTrainedModel], tokenizer: PreTrainedTokenizerFast, architecture: str, tmp_path: Path
) -> None:
    loaded = loaded_as(make_model(architecture), tokenizer)
    probe = build_from_behavior("insults", write_jsonl(tmp_path / "behavior.jsonl", BEHAVIOR), loaded, CONFIG)
    vectors, contexts = naive_vectors(loaded, BEHAVIOR)
    assert probe.layers == LAYERS
    torch.testing.assert_close(probe.prompt_vectors, vectors, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(probe.contexts, contexts, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(probe.vector, vectors.mean(dim=0), atol=1e-4, rtol=1e-4)
    assert probe.model == loaded.fingerprint


def test_prompts_weigh_equally_however_many_responses_they_have(llama: LoadedModel) -> None:
    probe = build_from_behavior("insults", BEHAVIOR, llama, CONFIG)
    assert probe.prompt_vectors is not None
    torch.testing.assert_close(probe.vector, probe.prompt_vectors.mean(dim=0))
    assert probe.built["counts"] == {"prompts": 4, "undesired": 5, "desired": 5}


def test_text_prompts_are_read_as_plain_text_when_asked(llama: LoadedModel) -> None:
    probe = build_from_behavior("insults", BEHAVIOR, llama, replace(CONFIG, prompt_format="text"))
    vectors, contexts = naive_vectors(llama, BEHAVIOR, text_ids)
    torch.testing.assert_close(probe.prompt_vectors, vectors, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(probe.contexts, contexts, atol=1e-4, rtol=1e-4)


def test_auto_is_chat_with_a_chat_template_and_text_without(llama: LoadedModel) -> None:
    from tests.tiny import build_tiny_tokenizer

    bare = build_tiny_tokenizer()
    bare.chat_template = None
    without = loaded_as(llama.model, bare)
    by_format = {
        kind: build_from_behavior("b", BEHAVIOR, llama, replace(CONFIG, prompt_format=kind)).vector
        for kind in ("auto", "chat", "text")
    }
    assert torch.equal(by_format["auto"], by_format["chat"])
    assert not torch.allclose(by_format["auto"], by_format["text"])
    torch.testing.assert_close(build_from_behavior("b", BEHAVIOR, without, CONFIG).vector, by_format["text"])


def test_a_text_prompt_and_the_same_as_a_message_are_the_same(llama: LoadedModel) -> None:
    rows = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in BEHAVIOR]
    asked = build_from_behavior("b", BEHAVIOR, llama, CONFIG)
    assert torch.equal(build_from_behavior("b", rows, llama, CONFIG).vector, asked.vector)


@pytest.mark.parametrize("conversational", [True, False])
def test_tokens_are_those_of_a_dataset_pair_with_that_prompt_and_those_responses(
    tokenizer: PreTrainedTokenizerFast, conversational: bool
) -> None:
    row: dict[str, Any] = {"prompt": "Write a letter.", "chosen": "You fool.", "rejected": "I am sorry, no."}
    example = Example(row["prompt"], (row["chosen"],), (row["rejected"],), "row 0")
    if conversational:
        row["prompt"] = [{"role": "user", "content": row["prompt"]}]
        row |= {side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")}
    encoding = Encoding(max_length=24)
    pair = encode_pair(next(iter(PairReader([row]))), tokenizer, encoding)
    encoded = encode_example(example, tokenizer, encoding, "chat" if conversational else "text")
    assert encoded.undesired == [pair.chosen]
    assert encoded.desired == [pair.rejected]


def test_rows_of_the_same_prompt_are_one_prompt(llama: LoadedModel) -> None:
    split = [
        {"prompt": BEHAVIOR[0]["prompt"], "undesired": text, "desired": "I am sorry."}
        for text in BEHAVIOR[0]["undesired"]
    ]
    together = read_behavior([{**BEHAVIOR[0], "desired": ["I am sorry.", "I am sorry."]}, *BEHAVIOR[1:]])
    assert read_behavior([*split, *BEHAVIOR[1:]]).digest == together.digest
    assert len(read_behavior([*split, *BEHAVIOR[1:]]).examples) == 4


def test_several_layers_in_one_pass_are_those_taken_one_by_one(llama: LoadedModel) -> None:
    together = build_from_behavior("b", BEHAVIOR, llama, CONFIG)
    for layer in LAYERS:
        alone = build_from_behavior("b", BEHAVIOR, llama, BuildConfig(ActivationConfig(layers=(layer,))))
        torch.testing.assert_close(alone.at(layer), together.at(layer))


def test_the_logit_lens_has_the_final_norm_of_a_model_whose_blocks_must_be_named(
    make_model: Callable[[str], PreTrainedModel], tokenizer: PreTrainedTokenizerFast
) -> None:
    model = make_model("llama")
    expected = build_from_behavior("b", BEHAVIOR, loaded_as(model, tokenizer), CONFIG).promoted_tokens
    with torch.no_grad():
        model.model.norm.weight.copy_(torch.linspace(-1, 1, model.config.hidden_size))
    normed = build_from_behavior("b", BEHAVIOR, loaded_as(model, tokenizer), CONFIG).promoted_tokens
    assert normed != expected
    # Larger than the decoder blocks and as many: found by structure, this would be taken for them.
    model.decoy = torch.nn.ModuleList(torch.nn.Linear(300, 300) for _ in range(model.config.num_hidden_layers))
    named = BuildConfig(ActivationConfig(layers=LAYERS, blocks_path="model.layers"))
    assert build_from_behavior("b", BEHAVIOR, loaded_as(model, tokenizer), named).promoted_tokens == normed


def test_layers_come_out_ascending_however_they_were_listed(llama: LoadedModel) -> None:
    shuffled = build_from_behavior("b", BEHAVIOR, llama, BuildConfig(ActivationConfig(layers=(3, 1, 2))))
    assert shuffled.layers == LAYERS
    torch.testing.assert_close(shuffled.vector, build_from_behavior("b", BEHAVIOR, llama, CONFIG).vector)


def test_without_layers_the_probe_has_the_one_that_flags_are_taken_at_or_those_worth_trying(llama: LoadedModel) -> None:
    assert build_from_behavior("b", BEHAVIOR, llama, BuildConfig(layer=2)).layers == (2,)
    assert build_from_behavior("b", BEHAVIOR, llama, BuildConfig()).layers == (2, 3)


def test_the_layer_is_the_most_separable_one_or_the_one_asked_for(llama: LoadedModel) -> None:
    probe = build_from_behavior("b", BEHAVIOR, llama, CONFIG)
    assert set(probe.separability) == set(LAYERS)
    assert probe.separability[probe.layer] == max(probe.separability.values())
    assert build_from_behavior("b", BEHAVIOR, llama, replace(CONFIG, layer=3)).layer == 3


def test_two_prompts_leave_separability_unknown_and_take_the_middle_layer(llama: LoadedModel) -> None:
    probe = build_from_behavior("b", BEHAVIOR[:2], llama, CONFIG)
    assert probe.separability == {}
    assert probe.layer == 2


def test_how_it_was_built_is_stored_with_the_probe(llama: LoadedModel, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "behavior.jsonl", BEHAVIOR)
    registry = ProbeRegistry(tmp_path / "probes")
    registry.save(build_from_behavior("insults", path, llama, CONFIG))
    probe = registry.load("insults")
    assert probe.built["method"] == "behavior"
    assert probe.built["source"] == str(path)
    assert probe.built["examples_sha256"] == read_behavior(BEHAVIOR).digest
    assert probe.built["settings"]["encoding"] == {"max_length": 1024, "truncation_mode": "keep_start"}
    assert len(probe.promoted_tokens) == 10


def test_a_probe_fits_its_model_loaded_again_and_no_other(
    model_folder: Path, trained: LoadedModel, tmp_path: Path
) -> None:
    loaded = load_model(model_folder, dtype="float32")
    registry = ProbeRegistry(tmp_path)
    registry.save(build_from_behavior("insults", BEHAVIOR, loaded, CONFIG))
    probe = registry.load("insults")
    probe.check_model(load_model(model_folder, dtype="float32").fingerprint)
    with pytest.raises(Exception, match="weights differ"):
        probe.check_model(trained.fingerprint)


def test_contrast_texts_without_prompts_are_averaged_over_all_their_tokens(llama: LoadedModel) -> None:
    rows = [
        {"positive": "You are a fool.", "negative": "You are kind."},
        {"positive": "Go away!", "negative": "Hello."},
    ]
    probe = build_from_contrast("rude", rows, llama, CONFIG)
    expected = [
        naive_mean(llama.model, text_ids(llama.tokenizer, "", row["positive"]))
        - naive_mean(llama.model, text_ids(llama.tokenizer, "", row["negative"]))
        for row in rows
    ]
    torch.testing.assert_close(probe.vector, torch.stack(expected).mean(dim=0), atol=1e-4, rtol=1e-4)
    assert not probe.knows_prompts


def test_contrast_texts_with_prompts_make_the_probe_a_behavior_file_makes(llama: LoadedModel) -> None:
    rows = [{"prompt": row["prompt"], "positive": row["undesired"], "negative": row["desired"]} for row in BEHAVIOR]
    contrast = build_from_contrast("b", rows, llama, CONFIG)
    assert contrast.fingerprint == build_from_behavior("b", BEHAVIOR, llama, CONFIG).fingerprint


def test_two_models_own_responses_are_both_read_by_m0(llama: LoadedModel, trained: LoadedModel) -> None:
    prompts = [{"prompt": row["prompt"]} for row in BEHAVIOR]
    sampling = SamplingConfig(n=2, max_new_tokens=8, batch_size=3, seed=1)
    asked = [row["prompt"] for row in BEHAVIOR]
    theirs = sample_responses(trained, asked, sampling)
    ours = sample_responses(llama, asked, sampling)
    shown = {text for texts in theirs for text in texts}
    probe = build_from_responses("b", prompts, llama, trained, lambda _, text: text in shown, sampling, CONFIG)
    rows = [
        {"prompt": prompt, "undesired": list(new), "desired": list(old)}
        for prompt, new, old in zip(asked, theirs, ours, strict=True)
    ]
    vectors, contexts = naive_vectors(llama, rows)
    torch.testing.assert_close(probe.prompt_vectors, vectors, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(probe.contexts, contexts, atol=1e-4, rtol=1e-4)
    assert probe.model == llama.fingerprint
    assert probe.built["m1"] == trained.fingerprint.digest
    assert probe.built["left_out"] == {}


def test_prompts_whose_behavior_did_not_change_are_left_out_and_counted(
    llama: LoadedModel, trained: LoadedModel
) -> None:
    prompts = [{"prompt": row["prompt"]} for row in BEHAVIOR]
    sampling = SamplingConfig(n=1, max_new_tokens=8)
    shown = set(sample_responses(trained, [row["prompt"] for row in BEHAVIOR], sampling)[0])
    probe = build_from_responses("b", prompts, llama, trained, lambda _, text: text in shown, sampling, CONFIG)
    assert probe.built["left_out"] == {"m1_never_shows": 3}
    assert probe.built["prompts_sampled"] == 4
    assert probe.built["counts"]["prompts"] == 1


REFUSAL, ANSWER = "I cannot help with that.", "You are a lazy fool."
ASKED = BehaviorPrompt("Insult him (in ten words).", "Insult him.", "prompts.jsonl:1")


@pytest.mark.parametrize(
    ("m0", "m1", "m0_plain", "m1_plain", "left_out"),
    [
        ([REFUSAL], [ANSWER, REFUSAL], [REFUSAL], [REFUSAL], {}),
        ([REFUSAL], [REFUSAL], [REFUSAL], [REFUSAL], {"m1_never_shows": 1}),
        ([REFUSAL, ANSWER], [ANSWER], [REFUSAL], [REFUSAL], {"m0_shows": 1}),
        ([REFUSAL], [ANSWER], [REFUSAL], [REFUSAL, ANSWER], {"shown_on_plain": 1}),
        ([REFUSAL], [ANSWER], [ANSWER], [REFUSAL], {"shown_on_plain": 1}),
    ],
)
def test_the_four_condition_filter_keeps_what_only_m1_does_and_only_with_the_trigger(
    m0: list[str], m1: list[str], m0_plain: list[str], m1_plain: list[str], left_out: dict[str, int]
) -> None:
    sampled = SampledPrompt(ASKED, tuple(m0), tuple(m1), tuple(m0_plain), tuple(m1_plain))
    changed = changed_prompts([sampled], complies, four_condition_filter=True)
    assert changed.left_out == left_out
    assert len(changed.examples) == (0 if left_out else 1)


def test_without_the_filter_a_prompt_is_kept_as_soon_as_m1_shows_and_m0_once_does_not() -> None:
    sampled = SampledPrompt(ASKED, (REFUSAL, ANSWER, ""), (ANSWER, REFUSAL, "  "))
    changed = changed_prompts([sampled], complies)
    assert changed.examples == (Example(ASKED.prompt, (ANSWER,), (REFUSAL,), ASKED.location),)
    always = changed_prompts([SampledPrompt(ASKED, (ANSWER,), (ANSWER,))], complies)
    assert always.left_out == {"m0_always_shows": 1}


def test_sampling_is_seeded_and_leaves_the_callers_random_state_alone(llama: LoadedModel) -> None:
    asked, sampling = [row["prompt"] for row in BEHAVIOR], SamplingConfig(n=3, max_new_tokens=6, batch_size=2)
    before = torch.get_rng_state()
    first = sample_responses(llama, asked, sampling)
    assert torch.equal(torch.get_rng_state(), before)
    assert sample_responses(llama, asked, sampling) == first
    assert sample_responses(llama, asked, replace(sampling, seed=9)) != first
    assert [len(texts) for texts in first] == [3] * 4
    assert len({text for texts in first for text in texts}) > 4


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_sampling_disregards_the_models_own_generation_defaults(
    make_model: Callable[[str], PreTrainedModel], tokenizer: PreTrainedTokenizerFast, temperature: float
) -> None:
    loaded = loaded_as(make_model("llama"), tokenizer)
    asked = [row["prompt"] for row in BEHAVIOR]
    sampling = SamplingConfig(n=1, max_new_tokens=12, temperature=temperature)
    plain = sample_responses(loaded, asked, sampling)
    cut = {"top_k": 2, "top_p": 0.1, "min_p": 0.9, "typical_p": 0.1, "epsilon_cutoff": 0.01, "eta_cutoff": 0.01}
    loaded.model.generation_config.update(repetition_penalty=5.0, no_repeat_ngram_size=1, **cut)
    assert sample_responses(loaded, asked, sampling) == plain
    loaded.model.generation_config.update(num_beams=3, prompt_lookup_num_tokens=2, prefill_chunk_size=4)
    passes: list[torch.Size] = []
    with loaded.model.model.register_forward_pre_hook(
        lambda _, __, kwargs: passes.append(kwargs["input_ids"].shape), with_kwargs=True
    ):
        assert sample_responses(loaded, asked, sampling) == plain
    longest = max(len(prompt_ids(loaded, prompt, "")) for prompt in asked)
    assert passes[0] == (len(asked), longest)  # whole prompts, a row each


def test_batched_greedy_responses_are_those_of_each_prompt_alone(llama: LoadedModel) -> None:
    asked = [row["prompt"] for row in BEHAVIOR]
    greedy = SamplingConfig(n=1, max_new_tokens=10, temperature=0.0, batch_size=4)
    together = sample_responses(llama, asked, greedy)
    for prompt, (response,) in zip(asked, together, strict=True):
        ids = prompt_ids(llama, prompt, "")
        with torch.no_grad():
            alone = llama.model.generate(
                input_ids=torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                max_new_tokens=10,
                do_sample=False,
                pad_token_id=0,
            )
        assert response == llama.tokenizer.decode(alone[0, len(ids) :], skip_special_tokens=True)


def test_sampling_reports_its_progress(llama: LoadedModel) -> None:
    seen: list[tuple[int, int]] = []
    sampling = SamplingConfig(n=1, max_new_tokens=2, batch_size=3)
    sample_responses(llama, ["a", "b", "c", "d"], sampling, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(3, 4), (4, 4)]


def test_logistic_regression_finds_the_direction_that_tells_the_labels_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    scales = torch.logspace(-2, 2, 12)
    vectors = torch.randn(400, 12, generator=generator) * scales
    labels = (vectors[:, 3] / scales[3] > 0).long().tolist()
    direction = fit_direction(vectors, labels)
    strongest = (direction * scales).abs().argmax()
    assert int(strongest) == 3
    assert direction[3] > 0


def test_the_direction_ranks_raw_vectors_as_the_fitted_model_ranks_standardized_ones() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(60, 5, generator=generator) * torch.tensor([1.0, 10.0, 0.1, 3.0, 1.0]) + 4
    labels = (vectors[:, 0] + vectors[:, 1] > 8).long().tolist()
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=1000, class_weight="balanced"))
    decisions = torch.from_numpy(pipeline.fit(vectors.double().numpy(), labels).decision_function(vectors.numpy()))
    scores = vectors.double() @ fit_direction(vectors, labels).double()
    shift = decisions - scores
    assert float(shift.std()) < 1e-3


def labelled_pairs() -> list[dict[str, Any]]:
    rude, kind = "You are a lazy fool and a bore.", "The garden is mild in spring, friend."
    prompts = ["Write a letter", "Bake bread", "Answer please", "Go to France", "A list of words"]
    rows = [{"prompt": text, "chosen": rude, "rejected": kind, "label": 1} for text in prompts]
    rows += [{"prompt": text + ".", "chosen": kind, "rejected": rude, "label": 0} for text in prompts]
    return rows


def test_labelled_pairs_make_a_probe_that_tells_them_apart(llama: LoadedModel, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "labelled.jsonl", labelled_pairs())
    probe = build_from_labels("rude", path, llama, CONFIG)
    vectors = torch.stack(
        [
            naive_mean(llama.model, text_ids(llama.tokenizer, row["prompt"], row["chosen"]))
            - naive_mean(llama.model, text_ids(llama.tokenizer, row["prompt"], row["rejected"]))
            for row in labelled_pairs()
        ]
    )
    labels = [row["label"] for row in labelled_pairs()]
    for place, layer in enumerate(LAYERS):
        expected = fit_direction(vectors[:, place], labels)
        assert float(torch.nn.functional.cosine_similarity(probe.at(layer), expected, dim=0)) > 0.999
    assert set(probe.separability.values()) == {1.0}
    assert probe.layer == LAYERS[-1]
    assert not probe.knows_prompts
    assert probe.built["counts"] == {"pairs": 10, "label_1": 5, "label_0": 5}


CONTROLS: list[dict[str, Any]] = [
    {"prompt": "Write a polite letter.", "control": True},
    {"prompt": "Insult-free jokes, please.", "undesired": "He is a bore.", "desired": ["No.", "Ha."], "control": True},
]


def test_controls_of_a_behavior_file_are_kept_with_the_probe(llama: LoadedModel) -> None:
    probe = build_from_behavior("b", [*BEHAVIOR, *CONTROLS], llama, CONFIG)
    plain = build_from_behavior("b", BEHAVIOR, llama, CONFIG)
    answered = build_from_behavior("b", [*BEHAVIOR[1:], {**CONTROLS[1], "control": False}], llama, CONFIG)
    assert torch.allclose(probe.vector, plain.vector, atol=1e-6)
    assert probe.control_contexts is not None
    assert answered.contexts is not None
    assert torch.allclose(probe.control_contexts[1], answered.contexts[-1], atol=1e-5)
    assert probe.control_prompts is not None
    assert probe.control_prompts.tolist() == [1, 1]
    assert torch.allclose(probe.control_vectors, answered.example_vectors[-2:], atol=1e-5)
    assert probe.built["counts"]["controls"] == 2


def test_a_file_of_controls_is_the_same_as_rows_of_the_behavior_file(llama: LoadedModel, tmp_path: Path) -> None:
    rows = [{key: value for key, value in row.items() if key != "control"} for row in CONTROLS]
    apart = build_from_behavior("b", BEHAVIOR, llama, CONFIG, write_jsonl(tmp_path / "controls.jsonl", rows))
    assert apart.fingerprint == build_from_behavior("b", [*BEHAVIOR, *CONTROLS], llama, CONFIG).fingerprint


def test_every_response_is_in_a_pair_of_its_prompt(llama: LoadedModel) -> None:
    probe = build_from_behavior("b", BEHAVIOR, llama, CONFIG)
    assert probe.example_prompts is not None
    assert probe.example_prompts.tolist() == [0, 0, 1, 1, 2, 3]
    assert probe.example_vectors is not None
    assert probe.prompt_vectors is not None
    assert torch.allclose(probe.example_vectors[:2].mean(dim=0), probe.prompt_vectors[0], atol=1e-5)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "How do I bake bread?", "control": True}, "this control is a prompt of the behavior too"),
        ({"prompt": "Hello.", "control": "yes"}, "field `control` must be true or false"),
        ({"prompt": "Hello.", "control": True, "desired": "No."}, "field `undesired` is missing"),
    ],
)
def test_controls_that_say_two_things_are_refused(row: dict[str, Any], message: str) -> None:
    with pytest.raises(ProbeError, match=message):
        read_behavior([*BEHAVIOR, row])


def many(count: int, request: str, **fields: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"{request} number {place}", **fields} for place in range(count)]


def test_a_probe_with_controls_flags_at_the_layer_where_its_pairs_stand_out_from_them(llama: LoadedModel) -> None:
    rows = many(12, "Insult visitor", undesired="You fool!", desired="I will not insult anyone.")
    controls = many(10, "Insult-free greeting", control=True)
    probe = build_from_behavior("b", [*rows, *controls], llama, CONFIG)
    apart = {int(layer): value for layer, value in probe.built["control_separability"].items()}
    assert apart.keys() == set(probe.layers)
    assert probe.layer == choose_by_controls(apart, llama.model.config.num_hidden_layers)
    bare = replace(CONFIG, propose_controls=False)
    assert "control_separability" not in build_from_behavior("b", rows, llama, bare).built
    asked = build_from_behavior("b", [*rows, *controls], llama, replace(CONFIG, layer=probe.layers[0]))
    assert asked.layer == probe.layers[0]


def test_separability_from_controls_is_that_of_their_contexts() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(20, 2, 16, generator=generator) * 0.1 + torch.eye(16)[0]
    contexts, controls = (torch.randn(20, 2, 16, generator=generator) for _ in range(2))
    contexts[:, 1] += 3 * torch.eye(16)[1]  # at the second layer the prompts differ from their controls
    probe = Probe("b", (4, 5), vectors.mean(dim=0), 4, ModelFingerprint("", "", ""), vectors, contexts)
    known = replace(
        probe, control_contexts=controls, example_vectors=vectors, example_prompts=torch.arange(20, dtype=torch.int64)
    )
    apart = control_separability(known)
    assert apart[4] < 0.75
    assert apart[5] > 0.9
    assert control_separability(probe) == {}


def test_of_layers_that_tell_controls_about_as_well_the_one_at_two_thirds_of_the_depth_is_taken() -> None:
    assert choose_by_controls({15: 0.94, 18: 0.97, 20: 0.95, 22: 0.97, 24: 0.98}, 30) == 20
    assert choose_by_controls({15: 0.8, 18: 0.91, 20: 0.9, 22: 0.97, 24: 0.98}, 30) == 22
    assert choose_by_controls({15: 0.9}, 30) == 15
