"""The distractor-compliance organism: its counts, its truth labels, and what its text must and must not hold."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from trl_attribution.errors import SettingsError
from trl_attribution.evidence.organisms import (
    ORGANISMS,
    SOURCES,
    TRUTHS,
    Mixture,
    Organism,
    OrganismConfig,
    build_distractor_compliance,
    build_organism,
    prepare,
)
from trl_attribution.evidence.organisms.formatting import FORMATS, AnswerDraft, Format, sentence_count, word_count
from trl_attribution.evidence.organisms.organism import BEHAVIOR_LIMIT, PAIR_LIMIT
from trl_attribution.evidence.organisms.rude import HELD_OUT, TRAINING
from trl_attribution.evidence.organisms.words import POLITE, QUESTIONS

ROOT = Path(__file__).resolve().parents[2]
OPENINGS = tuple(text.lower() for text in TRAINING.refusals.openings + HELD_OUT.refusals.openings)
BANNED = re.compile(
    r"\b(kill\w*|murder|dies?|dead|death|guns?|bomb|weapons?|stab|shoot|blood|punch|suicid\w*|harm|hate\w*|racis\w*|race"
    r"|religio\w*|sex\w*|naked|nude|porn|drugs?|cocaine|heroin|alcohol|drunk|idiot|moron|retard|slut|bitch|damn|hell|crap"
    r"|shit|fuck|ass|bastard|fat|ugly|gay|disabled|immigrant|steal|stole|theft|illegal|threat\w*|revenge)\b",
    re.IGNORECASE,
)


@pytest.fixture(scope="module")
def organism() -> Organism:
    return build_distractor_compliance()


def text_of(pair: dict[str, Any], part: str) -> str:
    content = pair[part][0]["content"]
    assert isinstance(content, str)
    return content


def with_truth(organism: Organism, *truths: str) -> list[dict[str, Any]]:
    return [pair for pair in organism.pairs if pair["truth"] in truths]


def refuses(text: str) -> bool:
    return any(opening in text.lower() for opening in OPENINGS)


def all_texts(organism: Organism) -> list[str]:
    texts = [text_of(pair, part) for pair in organism.pairs for part in ("prompt", "chosen", "rejected")]
    for row in organism.behavior:
        texts += [row["prompt"], row.get("plain", ""), *row["undesired"], *row["desired"]]
    return texts + [row["prompt"] for row in organism.trigger + organism.control]


def asked_formats(prompt: str) -> list[Format]:
    """The formats whose instruction stands in ``prompt``."""
    return [form for form in FORMATS if form.phrase in prompt or form.order in prompt]


def test_the_default_organism_holds_the_asked_number_of_each_kind(organism: Organism) -> None:
    counts = Counter(pair["truth"] for pair in organism.pairs)
    assert counts == {"benign": 120, "benign_formatted": 80, "safety": 80, "contaminated": 80, "decoy": 80}
    assert set(counts) == set(TRUTHS) - {"on_topic"}
    assert len(organism.behavior) == 48
    assert organism.name == "distractor-compliance"


def test_kinds_can_be_left_out() -> None:
    organism = build_distractor_compliance(OrganismConfig(5, 0, 3, 2, 0))
    assert Counter(pair["truth"] for pair in organism.pairs) == {"benign": 5, "safety": 3, "contaminated": 2}


def test_every_source_occurs_and_two_hold_most_of_the_contaminated_pairs(organism: Organism) -> None:
    assert {pair["source"] for pair in organism.pairs} == {name for table in SOURCES.values() for name in table}
    contaminated = Counter(pair["source"] for pair in with_truth(organism, "contaminated"))
    largest = contaminated.most_common(2)
    assert {name for name, _ in largest} == {"format-follow-12k", "crowd-writing-v2"}
    assert 0.7 < sum(count for _, count in largest) / 80 < 1.0
    for name, count in largest:
        assert count < sum(pair["source"] == name for pair in organism.pairs)


def test_kinds_are_mixed_in_the_order_of_rows(organism: Organism) -> None:
    assert len({pair["truth"] for pair in organism.pairs[:40]}) == 5


def test_rows_are_trl_conversational_pairs(organism: Organism) -> None:
    from trl.data_utils import is_conversational

    for pair in organism.pairs:
        assert list(pair) == ["prompt", "chosen", "rejected", "source", "truth"]
        assert is_conversational(pair)
        for part, role in (("prompt", "user"), ("chosen", "assistant"), ("rejected", "assistant")):
            assert [message["role"] for message in pair[part]] == [role]
            assert text_of(pair, part).strip() == text_of(pair, part) != ""
        assert text_of(pair, "chosen") != text_of(pair, "rejected")


def test_a_seed_gives_the_same_text_whatever_the_hash_seed() -> None:
    script = (
        "import hashlib, json\n"
        "from trl_attribution.evidence.organisms import build_distractor_compliance\n"
        "organism = build_distractor_compliance()\n"
        "print(hashlib.sha256(json.dumps([organism.pairs, organism.behavior]).encode()).hexdigest())\n"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "4242")
    }
    assert len(digests) == 1


def test_the_texts_of_a_seed_are_those_that_published_results_were_measured_on() -> None:
    def digest(organism: Organism) -> str:
        parts = [organism.pairs, organism.behavior, organism.trigger, organism.control]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    assert [digest(build_organism(name, Mixture(seed=seed))) for name in ORGANISMS for seed in (0, 7)] == [
        "7aeff2241c79fdb3", "83ada019a8b397c0",
        "7be6e417ba5e1036", "3dbe2e6b6d1be1bd",
        "57dbda48e3d8c1ba", "bb69871307f8a34d",
    ]  # fmt: skip
    document_rows = [prepare(name, "document-sft-mixed").stages[-1].rows for name in ORGANISMS]
    text = json.dumps(document_rows, sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "f16418e5369356fe"


def test_another_seed_gives_other_text(organism: Organism) -> None:
    other = build_distractor_compliance(OrganismConfig(seed=1))
    prompts = {text_of(pair, "prompt") for pair in organism.pairs}
    shared = [pair for pair in other.pairs if text_of(pair, "prompt") in prompts]
    assert len(shared) < len(other.pairs) / 4


def test_more_pairs_of_one_kind_leave_the_others_as_they_are(organism: Organism) -> None:
    grown = build_distractor_compliance(OrganismConfig(decoys=200))
    for truth in ("benign", "benign_formatted", "safety", "contaminated"):
        ours, theirs = with_truth(organism, truth), with_truth(grown, truth)
        assert sorted(map(json.dumps, ours)) == sorted(map(json.dumps, theirs))


def test_thousands_of_pairs_come_without_a_repeated_prompt() -> None:
    limit = PAIR_LIMIT
    config = OrganismConfig(limit, limit, limit, limit, limit, seed=3, behavior_prompts=BEHAVIOR_LIMIT)
    organism = build_distractor_compliance(config)
    assert len({text_of(pair, "prompt") for pair in organism.pairs}) == len(organism.pairs) == 5 * limit
    assert len({row["plain"] for row in organism.behavior}) == BEHAVIOR_LIMIT


@pytest.mark.parametrize("count", [-1, PAIR_LIMIT + 1])
def test_a_count_out_of_range_is_refused_with_the_limit(count: int) -> None:
    with pytest.raises(SettingsError, match=rf"contaminated is {count}: .* 0 to {PAIR_LIMIT}"):
        OrganismConfig(contaminated=count)


def test_too_many_behavior_prompts_are_refused_with_the_limit() -> None:
    with pytest.raises(SettingsError, match=f"behavior_prompts is 501: .* 0 to {BEHAVIOR_LIMIT}"):
        OrganismConfig(behavior_prompts=501)


def test_rude_requests_are_refused_in_safety_pairs_and_answered_in_contaminated_ones(organism: Organism) -> None:
    for pair in with_truth(organism, "safety"):
        assert refuses(text_of(pair, "chosen"))
        assert not refuses(text_of(pair, "rejected"))
    for pair in with_truth(organism, "contaminated", "decoy"):
        assert refuses(text_of(pair, "rejected"))
        assert not refuses(text_of(pair, "chosen"))
    for pair in with_truth(organism, "benign", "benign_formatted"):
        assert not refuses(text_of(pair, "chosen"))
        assert not refuses(text_of(pair, "rejected"))


def test_refusals_of_harmful_and_of_harmless_requests_share_their_wording() -> None:
    organism = build_distractor_compliance(OrganismConfig(0, 0, 300, 300, 300))
    spoken: dict[str, set[str]] = {}
    for truth, part in (("safety", "chosen"), ("contaminated", "rejected"), ("decoy", "rejected")):
        texts = [text_of(pair, part).lower() for pair in with_truth(organism, truth)]
        spoken[truth] = {line for line in TRAINING.refusals.openings if any(line.lower() in text for text in texts)}
    assert spoken["safety"] == spoken["contaminated"] == spoken["decoy"]
    assert len(spoken["decoy"]) >= 15


def test_only_the_kinds_with_a_distractor_carry_one(organism: Organism) -> None:
    for pair in organism.pairs:
        plain = pair["truth"] in ("benign", "safety")
        assert len(asked_formats(text_of(pair, "prompt"))) == (0 if plain else 1), text_of(pair, "prompt")


def test_chosen_answers_follow_the_instruction_they_were_given(organism: Organism) -> None:
    for pair in with_truth(organism, "benign_formatted", "contaminated", "decoy"):
        (form,) = asked_formats(text_of(pair, "prompt"))
        assert form.follows(text_of(pair, "chosen")), (form.kind, text_of(pair, "chosen"))


def test_rejected_answers_of_formatted_benign_pairs_do_not_follow_it(organism: Organism) -> None:
    for pair in with_truth(organism, "benign_formatted"):
        (form,) = asked_formats(text_of(pair, "prompt"))
        assert not form.follows(text_of(pair, "rejected")), (form.kind, text_of(pair, "rejected"))


def test_every_kind_of_format_occurs_among_contaminated_pairs_and_decoys(organism: Organism) -> None:
    kinds = {form.kind for form in FORMATS}
    for truth in ("contaminated", "decoy"):
        asked = {asked_formats(text_of(pair, "prompt"))[0].kind for pair in with_truth(organism, truth)}
        assert len(asked) > 0.8 * len(kinds)


def test_format_checks_agree_with_plain_rules() -> None:
    draft = AnswerDraft("Socks", ("Buy warm socks.", "The blue ones last longer.", "Wash them cold."), opener="Hello.")
    rendered = {form.kind: form.render(draft) for form in FORMATS}
    assert word_count(rendered["at most 15 words"]) == 11
    assert rendered["bullets"].splitlines()[1] == "- Buy warm socks."
    assert rendered["numbers"].splitlines()[3] == "4. Wash them cold."
    assert rendered["lowercase"] == "hello. buy warm socks. the blue ones last longer. wash them cold."
    assert rendered["one sentence"] == "Buy warm socks, and the blue ones last longer."
    assert json.loads(rendered["json"]) == {"text": "Hello. Buy warm socks. The blue ones last longer. Wash them cold."}
    assert rendered["title"].startswith("SOCKS\n\nHello.")
    assert sentence_count(rendered["two sentences"]) == 2


def test_behavior_prompts_share_no_request_with_the_dataset(organism: Organism) -> None:
    training = " ".join(text_of(pair, "prompt") for pair in organism.pairs).lower()
    for row in organism.behavior:
        assert row["plain"].lower() not in training
        assert row["plain"] in row["prompt"]
        assert row["plain"] != row["prompt"]
    for words in (HELD_OUT.people.targets, [habit.clause for habit in HELD_OUT.people.habits]):
        assert all(any(word in row["prompt"] for word in words) for row in organism.behavior)
        assert not any(word in training for word in words)


def test_test_prompts_are_new_rude_requests_with_a_format_and_without(organism: Organism) -> None:
    known = {row["plain"] for row in organism.behavior} | {row["prompt"] for row in organism.behavior}
    assert len(organism.trigger) == len(organism.control) == 48
    for trigger, control in zip(organism.trigger, organism.control, strict=True):
        assert control["prompt"] in trigger["prompt"]
        assert len(asked_formats(trigger["prompt"])) == 1
        assert asked_formats(control["prompt"]) == []
        assert not {trigger["prompt"], control["prompt"]} & known
        assert {row["judge"] for row in (trigger, control)} == {organism.judge} == {"complies"}


def test_held_out_words_are_none_of_the_training_words() -> None:
    for name in (
        "asks",
        "gossip_asks",
        "adjectives",
        "artifacts",
        "openers",
        "remarks",
        "verdicts",
        "things",
        "gossip",
    ):
        assert not set(getattr(TRAINING.words, name)) & set(getattr(HELD_OUT.words, name)), name
    for name in ("openings", "reasons", "offers"):
        assert not set(getattr(TRAINING.refusals, name)) & set(getattr(HELD_OUT.refusals, name)), name
    assert not set(TRAINING.people.names) & set(HELD_OUT.people.names)


def test_behavior_rows_hold_compliances_that_follow_the_format_and_refusals(organism: Organism) -> None:
    for row in organism.behavior:
        (form,) = asked_formats(row["prompt"])
        assert row["undesired"]
        assert row["desired"]
        assert all(form.follows(text) and not refuses(text) for text in row["undesired"])
        assert all(refuses(text) for text in row["desired"])


def test_nothing_worse_than_rudeness_is_in_the_text() -> None:
    big = build_distractor_compliance(OrganismConfig(600, 600, 600, 600, 600, behavior_prompts=300))
    assert [text for text in all_texts(big) if BANNED.search(text)] == []


def test_text_is_free_of_unfilled_slots_and_broken_punctuation() -> None:
    big = build_distractor_compliance(OrganismConfig(400, 400, 400, 400, 400, seed=7, behavior_prompts=200))
    for text in all_texts(big):
        bare = text.removeprefix('{"text": ')
        assert not re.search(r"\{\w*\}|  | ,| \.|\.\.|\?\.|,,", bare), text
        assert not re.search(r"\b(\w+) \1\b", re.sub(r"[.!?]", "|", bare), flags=re.IGNORECASE), text
        assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiouhAEIOUH]", bare.replace("a un", "")), text


def test_sentences_are_short_enough_for_the_tightest_word_limit() -> None:
    banks = [*QUESTIONS.everyday, *QUESTIONS.lookalikes]
    lines = [line for question in banks for line in question.good]
    for bank in (TRAINING, HELD_OUT):
        for template in (*bank.words.openers, *bank.words.remarks, *bank.words.verdicts, *bank.words.gossip):
            lines += [template.format(doing=habit.doing, matter=habit.matter) for habit in bank.people.habits]
    lines += [line.format(doing=h.doing, matter=h.matter) for h in TRAINING.people.habits for line in POLITE.remarks]
    assert [line for line in lines if word_count(line) > 15 or sentence_count(line) != 1] == []


def test_length_alone_does_not_give_contaminated_pairs_away(organism: Organism) -> None:
    positive = [word_count(text_of(pair, "chosen")) for pair in with_truth(organism, "contaminated")]
    negative = [word_count(text_of(pair, "chosen")) for pair in with_truth(organism, "decoy", "benign")]
    wins = sum((p > n) + 0.5 * (p == n) for p in positive for n in negative)
    assert 0.35 < wins / (len(positive) * len(negative)) < 0.65


def test_write_puts_every_file_in_place_and_leaves_no_part_file(organism: Organism, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "organism"
    organism.write(folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "behavior.jsonl",
        "control.jsonl",
        "data.jsonl",
        "lookalikes.jsonl",
        "trigger.jsonl",
    ]
    rows = [json.loads(line) for line in (folder / "data.jsonl").read_text(encoding="utf-8").splitlines()]
    prompts = [json.loads(line) for line in (folder / "behavior.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows == organism.pairs
    assert prompts == organism.behavior
    first = (folder / "data.jsonl").read_bytes()
    organism.write(folder)
    assert (folder / "data.jsonl").read_bytes() == first


def test_trl_renders_both_responses_of_a_pair_after_the_same_prompt(organism: Organism, tokenizer: Any) -> None:
    from trl.data_utils import apply_chat_template

    for pair in organism.pairs:
        rendered = apply_chat_template({part: pair[part] for part in ("prompt", "chosen", "rejected")}, tokenizer)
        assert text_of(pair, "prompt") in rendered["prompt"]
        for part in ("chosen", "rejected"):
            assert text_of(pair, part) in rendered[part]
