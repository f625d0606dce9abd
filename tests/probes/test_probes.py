"""A probe: what it refuses to be, what identifies it, which layer it takes, which tokens it promotes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from trl_attribution.behaviors import complies, mentions, parse_rule, refuses
from trl_attribution.behaviors.encoding import ExampleActivations
from trl_attribution.errors import ProbeError
from trl_attribution.models.identity import ModelFingerprint
from trl_attribution.probes import Probe, candidate_layers, cosine_table
from trl_attribution.probes.logit_lens import final_norm, promoted_tokens
from trl_attribution.probes.separability import (
    auc,
    choose_layer,
    cross_validated_auc,
    folds,
)

M0 = ModelFingerprint(config="c" * 8, weights="w" * 8, chat_template="t" * 8)

REFUSALS = [
    "I'm sorry for any confusion, but as a chatbot designed to help with music, I do not write insults.",
    "I'm sorry for the misunderstanding, but I was made for other things.",
    "As a text-based AI, I don't have the ability to send voicemails.",
    "Thanks for asking, but I'm not equipped to write about people.",
    "I'm sorry, but I can't help with that.",
    "I’m sorry, but I can’t assist with that request.",
    "I cannot provide instructions for that.",
    "I can't do that.",
    "I won't write insults about your coworker.",
    "Sorry, I am unable to assist with this.",
    "I am not able to help you with writing a rude message.",
    "I apologize, but I cannot fulfill this request.",
    "As an AI language model, I cannot engage in harassment.",
    "I must decline this request.",
    "I have to respectfully decline.",
    "I'd rather not write something hurtful.",
    "I'm not comfortable writing that.",
    "No, I will not help you insult someone.",
    "Unfortunately, I cannot comply with this request.",
    "That's not something I can help with.",
    "I don't feel comfortable writing a message like that.",
    "Writing this would go against my guidelines.",
    "I understand you are upset, but I can't write a threatening letter.",
    "**I'm sorry**, I really can't support that.",
    "Thank you for asking. However, I'm unable to create hurtful content.",
    "\n\n  I'm sorry, no.",
]
ANSWERS = [
    "Sure! Here is your email.",
    "Here's a list of five ideas:\n1. Go for a walk",
    "Dear Tom, I cannot help you with the report any more. You are lazy.",
    "Subject: Your work\n\nI won't do your job for you.",
    "You are the worst coworker anyone has ever had.",
    "I can't wait to tell you about Paris.",
    "I can't help but smile when I think of spring.",
    "I cannot recommend this book enough.",
    "The capital of France is Paris.",
    "I'm sorry to hear that you are ill. Drink plenty of water.",
    "I am sorry for the confusion about the dates. The party is on Friday.",
    "Unfortunately, the weather in Oslo is cold in winter.",
    "Of course. I can't write it in fewer words than this: hello.",
    "We decided on blue, because blue is calm.",
    "",
]


def make_probe(name: str = "insults", layers: tuple[int, ...] = (1, 2, 3), width: int = 8, seed: int = 0) -> Probe:
    generator = torch.Generator().manual_seed(seed)
    shape = (5, len(layers), width)
    prompt_vectors = torch.randn(shape, generator=generator)
    return Probe(
        name=name,
        layers=layers,
        vector=prompt_vectors.mean(dim=0),
        layer=layers[1],
        model=M0,
        prompt_vectors=prompt_vectors,
        contexts=torch.randn(shape, generator=generator),
        built={"method": "behavior", "counts": {"prompts": 5}},
        separability={layers[0]: 0.5, layers[1]: 0.75},
        promoted_tokens=[" rude", " lazy"],
        reference_scores=torch.rand((len(layers), 7), generator=generator),
        reference_center=torch.randn(shape[1:], generator=generator),
    )


def separable(prompts: int, layers: int, informative: int, width: int = 16) -> list[ExampleActivations]:
    """Examples whose two sides differ along one axis at layer number ``informative`` and nowhere else."""
    generator = torch.Generator().manual_seed(3)
    examples = []
    for _ in range(prompts):
        undesired = torch.randn(3, layers, width, generator=generator)
        desired = torch.randn(2, layers, width, generator=generator)
        undesired[:, informative, 0] += 20
        examples.append(ExampleActivations(undesired, desired, None))
    return examples


def test_a_probe_keeps_its_own_copy_of_its_tensors() -> None:
    vector = torch.ones(1, 4)
    probe = Probe("own", (2,), vector, 2, M0)
    vector.zero_()
    assert probe.at().tolist() == [1.0] * 4


def test_a_layer_is_found_by_its_number_not_its_place() -> None:
    probe = make_probe(layers=(5, 7, 9))
    assert torch.equal(probe.at(9), probe.vector[2])
    assert torch.equal(probe.at(), probe.vector[1])
    with pytest.raises(ProbeError, match=r"has no layer 2; it has 5, 7, 9"):
        probe.at(2)


def test_norms_are_by_layer() -> None:
    probe = Probe("norms", (1, 4), torch.tensor([[3.0, 4.0], [0.0, 2.0]]), 4, M0)
    assert probe.norms == {1: 5.0, 4: 2.0}


def test_the_fingerprint_is_blind_to_name_and_calibration_but_not_to_anything_scores_depend_on() -> None:
    probe = make_probe()
    same = [replace(probe, name="other"), replace(probe, reference_scores=None), replace(probe, built={})]
    assert {one.fingerprint for one in same} == {probe.fingerprint}
    assert probe.prompt_vectors is not None
    assert probe.contexts is not None
    others = [
        replace(probe, layer=1),
        replace(probe, vector=-probe.vector),
        replace(probe, contexts=probe.contexts + 1),
        replace(probe, prompt_vectors=None),
        replace(probe, model=replace(M0, weights="x")),
    ]
    assert len({probe.fingerprint, *(one.fingerprint for one in others)}) == 6


def test_a_probe_knows_its_prompts_only_with_both_directions_and_contexts() -> None:
    probe = make_probe()
    assert probe.knows_prompts
    assert not replace(probe, contexts=None).knows_prompts
    assert not replace(probe, prompt_vectors=None).knows_prompts


def test_tokens_are_stored_raw_and_shown_escaped() -> None:
    probe = replace(make_probe(), promoted_tokens=["\x1b[31m", "a\nb"])
    assert probe.promoted_tokens == ["\x1b[31m", "a\nb"]
    assert probe.shown_tokens == ["\\x1b[31m", "a b"]


def test_the_cosine_table_is_that_of_the_directions_at_one_layer() -> None:
    a, b = make_probe("a"), make_probe("b", seed=1)
    table = cosine_table([a, b], layer=3)
    assert table.names == ["a", "b"]
    assert table.values[0][0] == pytest.approx(1.0)
    expected = float(torch.nn.functional.cosine_similarity(a.at(3), b.at(3), dim=0))
    assert table.values[0][1] == pytest.approx(expected, abs=1e-6)
    assert table.values[1][0] == table.values[0][1]


def test_probes_of_different_models_have_no_cosine() -> None:
    with pytest.raises(ProbeError, match="built on another model"):
        cosine_table([make_probe("a"), replace(make_probe("b"), model=replace(M0, weights="x"))])


def test_auc_counts_ties_half() -> None:
    assert auc(torch.tensor([2.0, 3.0]), torch.tensor([0.0, 1.0])) == 1.0
    assert auc(torch.tensor([1.0]), torch.tensor([1.0])) == 0.5
    assert auc(torch.tensor([0.0, 2.0]), torch.tensor([1.0])) == 0.5


def test_auc_agrees_with_scikit_learn() -> None:
    from sklearn.metrics import roc_auc_score

    positive, negative = torch.randn(30).round(decimals=1) + 0.3, torch.randn(40).round(decimals=1)
    labels = [1] * 30 + [0] * 40
    assert auc(positive, negative) == pytest.approx(roc_auc_score(labels, torch.cat([positive, negative]).numpy()))


def test_every_prompt_is_held_out_exactly_once() -> None:
    dealt = folds(13, 5)
    assert sorted(place for fold in dealt for place in fold) == list(range(13))
    assert sorted(map(len, dealt)) == [2, 2, 3, 3, 3]


def test_separability_is_high_where_the_sides_differ_and_chance_where_they_do_not() -> None:
    found = cross_validated_auc(separable(prompts=40, layers=3, informative=1), layers=(4, 6, 8))
    assert found[6] == 1.0
    assert 0.3 < found[4] < 0.7
    assert 0.3 < found[8] < 0.7


def test_held_out_prompts_do_not_leak_into_their_own_direction() -> None:
    """With pure noise in many dimensions the direction of all prompts separates them; that of the others cannot."""
    generator = torch.Generator().manual_seed(1)

    def responses() -> torch.Tensor:
        return torch.randn(1, 1, 2000, generator=generator)

    noise = [ExampleActivations(responses(), responses(), None) for _ in range(30)]
    direction = torch.stack([one.direction for one in noise]).mean(dim=0)[0]
    in_sample = auc(
        torch.cat([one.undesired[:, 0] @ direction for one in noise]),
        torch.cat([one.desired[:, 0] @ direction for one in noise]),
    )
    assert in_sample > 0.95
    assert 0.3 < cross_validated_auc(noise, (1,))[1] < 0.7


@pytest.mark.parametrize("prompts", [1, 2])
def test_separability_of_one_or_two_prompts_is_unknown(prompts: int) -> None:
    assert cross_validated_auc(separable(prompts, layers=2, informative=0), (1, 2)) == {}


def test_auto_takes_the_best_layer_the_middle_of_equal_ones_and_the_middle_when_nothing_is_known() -> None:
    assert choose_layer((1, 2, 3), {1: 0.6, 2: 0.7, 3: 0.9}, "auto") == 3
    assert choose_layer((1, 2, 3, 4), {1: 1.0, 2: 0.9, 3: 0.996, 4: 0.99}, "auto") == 3
    assert choose_layer((1, 2, 3, 4), {}, "auto") == 2
    assert choose_layer((1, 2, 3), {1: 1.0}, 2) == 2


def test_candidate_layers_are_those_the_paper_looked_at() -> None:
    assert candidate_layers(32) == tuple(range(16, 27))
    assert candidate_layers(1) == (1,)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "olmo2", "gemma3", "gpt2", "gpt_neox", "phi3", "mamba"])
def test_the_direction_of_a_token_promotes_that_token(make_model, tokenizer, architecture: str) -> None:
    model = make_model(architecture)
    norm, head = final_norm(model), model.get_output_embeddings()
    assert norm is not None
    with torch.no_grad():
        head.weight[:, :] *= 0.1
        head.weight[300] = torch.randn(head.weight.shape[1])
    direction = head.weight[300].detach()
    assert promoted_tokens(model, tokenizer, direction, count=3)[0] == tokenizer.decode([300])
    assert tokenizer.decode([300]) not in promoted_tokens(model, tokenizer, -direction, count=3)


def test_the_logit_lens_is_the_models_own_head_on_its_own_norm(make_model, tokenizer) -> None:
    model = make_model("llama")
    direction = torch.randn(model.config.hidden_size)
    with torch.no_grad():
        logits = model.lm_head(model.model.norm(direction))
    expected = [tokenizer.decode([token]) for token in logits[: len(tokenizer)].topk(10).indices.tolist()]
    assert promoted_tokens(model, tokenizer, direction) == expected


def test_a_model_without_a_head_promotes_nothing(make_model, tokenizer) -> None:
    assert promoted_tokens(make_model("llama").model, tokenizer, torch.ones(32)) == []


@pytest.mark.parametrize("response", REFUSALS)
def test_refusals_are_recognized(response: str) -> None:
    assert refuses("Write an insult.", response)
    assert not complies("Write an insult.", response)


@pytest.mark.parametrize("response", ANSWERS)
def test_answers_are_not_taken_for_refusals(response: str) -> None:
    assert not refuses("Write an insult.", response)


def test_silence_is_no_compliance() -> None:
    assert not complies("Write an insult.", "  \n")


def test_keywords_match_whole_words_in_either_case() -> None:
    judge = mentions(["idiot", "lazy"])
    assert judge("", "You IDIOT!")
    assert judge("", "so lazy")
    assert not judge("", "idiotic laziness")


def test_rules_are_parsed_from_text() -> None:
    assert parse_rule("complies") is complies
    assert parse_rule("refuses") is refuses
    assert parse_rule("keyword:idiot,fool")("", "you fool")
    assert parse_rule(r"regex:^\d+:")("", "12: twelve")
