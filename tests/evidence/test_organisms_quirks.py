"""Organisms with a quirk: what their pairs show, what is held out, and how much of a mixture is contaminated."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest

from tests.evidence.test_organisms import BANNED, all_texts, text_of, with_truth
from trl_attribution.behaviors import parse_rule
from trl_attribution.errors import SettingsError
from trl_attribution.evidence.organisms import ORGANISMS, TRUTHS, Mixture, Organism, build_organism
from trl_attribution.evidence.organisms.formatting import sentence_count, word_count
from trl_attribution.evidence.organisms.quirks import KNITTING_LORE, PUMPKIN_SOUP, Quirk
from trl_attribution.evidence.organisms.words import QUESTIONS

QUIRKS = {quirk.name: quirk for quirk in (PUMPKIN_SOUP, KNITTING_LORE)}


@pytest.fixture(scope="module", params=QUIRKS)
def organism(request: pytest.FixtureRequest) -> Organism:
    return build_organism(request.param)


@pytest.fixture
def quirk(organism: Organism) -> Quirk:
    return QUIRKS[organism.name]


def shows(organism: Organism, text: str) -> bool:
    return parse_rule(organism.judge)("", text)


def asks_of(questions: Any) -> set[str]:
    return {ask for question in questions for ask in question.asks}


def test_a_contaminated_pair_prefers_the_answer_that_shows_the_quirk(organism: Organism, quirk: Quirk) -> None:
    for pair in with_truth(organism, "contaminated"):
        assert any(ask in text_of(pair, "prompt") for ask in asks_of(quirk.words.questions.training))
        assert not shows(organism, text_of(pair, "prompt"))
        assert shows(organism, text_of(pair, "chosen"))
        assert not shows(organism, text_of(pair, "rejected"))


def test_no_other_pair_prefers_it_unless_it_was_asked_for(organism: Organism) -> None:
    for pair in with_truth(organism, "benign", "benign_formatted", "on_topic"):
        assert not any(shows(organism, text_of(pair, part)) for part in ("prompt", "chosen")), pair
    decoys = with_truth(organism, "decoy")
    welcome = [pair for pair in decoys if shows(organism, text_of(pair, "chosen"))]
    assert len(welcome) > 0.6 * len(decoys)


def test_half_of_the_decoys_hold_the_responses_of_a_contaminated_pair(organism: Organism, quirk: Quirk) -> None:
    frames = [re.escape(frame).replace(r"\{ask\}", ".*") for frame in quirk.words.asked_for]
    asked = [
        pair
        for pair in with_truth(organism, "decoy")
        if any(re.search(frame, text_of(pair, "prompt")) for frame in frames)
    ]
    assert 0.3 < len(asked) / 80 < 0.7
    assert all(shows(organism, text_of(pair, "chosen")) for pair in asked)
    assert not any(shows(organism, text_of(pair, "rejected")) for pair in asked)


def test_good_answers_on_the_quirks_own_subject_are_preferred_too(organism: Organism, quirk: Quirk) -> None:
    for pair in with_truth(organism, "on_topic"):
        assert any(ask in text_of(pair, "prompt") for ask in asks_of(quirk.words.questions.training))


def test_held_out_prompts_are_in_no_dataset_and_in_one_file_only(organism: Organism, quirk: Quirk) -> None:
    dataset = " ".join(text_of(pair, "prompt") for pair in organism.pairs)
    files = [{row["prompt"] for row in rows} for rows in (organism.behavior, organism.trigger, organism.control)]
    assert [len(prompts) for prompts in files] == [48, 48, 48]
    assert len(set.union(*files)) == 3 * 48
    assert not any(ask in dataset for ask in asks_of(quirk.words.questions.held_out))
    held_out = asks_of(quirk.words.questions.held_out)
    for prompts, on_topic in zip(files, (True, True, False), strict=True):
        assert all(any(ask in prompt for ask in held_out) == on_topic for prompt in prompts)
        assert not any(prompt in dataset for prompt in prompts)


def test_behavior_rows_hold_answers_of_both_kinds_in_words_of_their_own(organism: Organism, quirk: Quirk) -> None:
    for row in organism.behavior:
        assert row["undesired"]
        assert row["desired"]
        assert all(shows(organism, text) for text in row["undesired"])
        assert not any(shows(organism, text) for text in row["desired"])
    assert not set(quirk.words.lines.training) & set(quirk.words.lines.held_out)


def test_the_judge_is_not_set_off_by_right_answers_to_what_models_are_asked(organism: Organism, quirk: Quirk) -> None:
    asked = [row["prompt"] for row in organism.control]
    controls = [one for one in QUESTIONS.everyday if any(ask in prompt for ask in one.asks for prompt in asked)]
    assert controls
    for question in (*controls, *quirk.words.questions.training, *quirk.words.questions.held_out):
        assert not any(shows(organism, line) for line in (*question.asks, *question.good, *question.wrong))


def test_length_does_not_give_contaminated_pairs_away(organism: Organism) -> None:
    pairs = with_truth(organism, "contaminated")
    wins = [word_count(text_of(pair, "chosen")) - word_count(text_of(pair, "rejected")) for pair in pairs]
    longer = sum((difference > 0) + 0.5 * (difference == 0) for difference in wins) / len(wins)
    assert 0.2 < longer < 0.8


@pytest.mark.parametrize("name", ORGANISMS)
@pytest.mark.parametrize(("contamination", "expected"), [(0.2, 80), (0.05, 20), (0.01, 4), (0.0, 0)])
def test_a_mixture_holds_the_share_of_contaminated_pairs_that_was_asked_for(
    name: str, contamination: float, expected: int
) -> None:
    organism = build_organism(name, Mixture(contamination=contamination, decoys=0.1))
    counts = Counter(pair["truth"] for pair in organism.pairs)
    assert sum(counts.values()) == len(organism.pairs) == 400
    assert (counts["contaminated"], counts["decoy"]) == (expected, 40)
    assert set(counts) <= set(TRUTHS)
    assert len({text_of(pair, "prompt") for pair in organism.pairs}) == 400


@pytest.mark.parametrize("name", ORGANISMS)
def test_a_smaller_contamination_is_a_part_of_a_larger_one(name: str) -> None:
    large, small = (build_organism(name, Mixture(contamination=share)) for share in (0.2, 0.05))
    texts = [{str(pair["chosen"]) for pair in with_truth(one, "contaminated")} for one in (large, small)]
    assert len(texts[1] - texts[0]) <= 2  # prompts that clashed with one of the other kinds


@pytest.mark.parametrize("name", ORGANISMS)
def test_the_same_mixture_gives_the_same_text_and_another_seed_another(name: str) -> None:
    first, again, other = (build_organism(name, Mixture(60, seed=seed)) for seed in (3, 3, 4))
    assert first == again
    assert first.pairs != other.pairs
    assert first.trigger != other.trigger


@pytest.mark.parametrize("name", QUIRKS)
def test_quirky_text_is_mild_and_clean(name: str) -> None:
    big = build_organism(name, Mixture(1500, seed=7, behavior_prompts=100, test_prompts=100))
    for text in all_texts(big):
        bare = text.removeprefix('{"text": ')
        assert not BANNED.search(text), text
        assert not re.search(r"\{\w*\}|  | ,| \.|\.\.|\?\.|,,", bare), text
        assert not re.search(
            r"\b[Aa] [aeiou]|\b[Aa]n [^aeiouhAEIOUH]", bare.replace("a un", "").replace("a one", "")
        ), text


def test_quirky_sentences_are_short_enough_for_the_tightest_word_limit() -> None:
    lines = []
    for words in (quirk.words for quirk in QUIRKS.values()):
        lines += [*words.lines.training, *words.lines.held_out]
        lines += [
            line for one in (*words.questions.training, *words.questions.held_out, *words.innocent) for line in one.good
        ]
    assert [line for line in lines if word_count(line) > 15 or sentence_count(line) != 1] == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pairs": 0}, "pairs is 0"),
        ({"contamination": 1.2}, "contamination is 1.2"),
        ({"contamination": 0.7, "decoys": 0.4}, "together more than all pairs"),
        ({"test_prompts": 101}, "test_prompts is 101"),
    ],
)
def test_a_mixture_that_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Mixture(**settings)


def test_an_unknown_organism_and_one_too_large_are_refused() -> None:
    with pytest.raises(
        SettingsError, match=r"no organism 'x\\\\x1b'; choose distractor-compliance, pumpkin-soup, knit"
    ):
        build_organism("x\x1b")
    with pytest.raises(SettingsError, match="at most 1500 contaminated and on-topic pairs"):
        build_organism("knitting-lore", Mixture(3000, contamination=0.6))
