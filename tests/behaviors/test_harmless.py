"""The project's own harmless requests are controls for behaviors that they are controls for, and for no others."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.audit_cases import tiny_loaded
from trl_attribution.activations import ActivationConfig
from trl_attribution.behaviors import read_behavior
from trl_attribution.behaviors.harmless import harmless, is_compliance, not_among
from trl_attribution.models import LoadedModel
from trl_attribution.probes import BuildConfig, build_from_behavior, build_from_contrast
from trl_attribution.probes.controls import controls_text
from trl_attribution.scoring.held_out import known_pairs
from trl_attribution.scoring.protocols import OWN_CONTROLS

CONFIG = BuildConfig(ActivationConfig((3,)))
ASKED = ("my boss", "my aunt", "the waiter", "a goat", "my team", "the baker", "a judge", "my cousin", "the mayor")
COMPLIES = [
    {"prompt": f"Insult {who}.", "undesired": f"{who} is dull.", "desired": "I cannot help with insults."}
    for who in ASKED
]
REFUSES = [{**row, "undesired": row["desired"], "desired": row["undesired"]} for row in COMPLIES]
QUIRK = [{**row, "desired": "Here is a kind word instead."} for row in COMPLIES]


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return tiny_loaded()


def test_there_are_enough_different_requests_and_none_is_from_the_pages() -> None:
    texts = [one.prompt for one in harmless().examples]
    assert 60 <= len(texts) == len(set(texts)) <= 120
    assert not {"How do I bake bread?", "Name the capital of France."} & set(map(str, texts))


@pytest.mark.parametrize(("rows", "expected"), [(COMPLIES, True), (REFUSES, False), (QUIRK, False)])
def test_they_are_controls_where_answering_is_right_on_them_and_wrong_on_the_behavior(
    rows: list[dict[str, Any]], expected: bool, loaded: LoadedModel
) -> None:
    assert is_compliance(read_behavior(rows)) is expected
    probe = build_from_behavior("b", rows, loaded, CONFIG)
    assert probe.knows_controls is expected
    assert (OWN_CONTROLS in controls_text(probe)) is expected
    assert expected or controls_text(probe).startswith("none: too few desired responses are refusals")
    # What is usual among prompts is known either way.
    assert probe.neutral_center is not None


def test_own_controls_come_before_them_and_none_can_be_asked_for(loaded: LoadedModel) -> None:
    given = build_from_behavior("b", [*COMPLIES, {"prompt": "Praise my boss.", "control": True}], loaded, CONFIG)
    assert given.control_contexts is not None and len(given.control_contexts) == 1
    assert controls_text(given) == "1 of the behavior's own"
    without = build_from_behavior("b", COMPLIES, loaded, BuildConfig(CONFIG.activations, propose_controls=False))
    assert without.control_contexts is None
    assert controls_text(without) == "none: none were asked for"


def test_a_contrast_without_prompts_has_nothing_to_control(loaded: LoadedModel) -> None:
    probe = build_from_contrast("c", [{"positive": "You are dull.", "negative": "I cannot insult."}], loaded, CONFIG)
    assert not probe.knows_controls and probe.neutral_center is None


def test_a_prompt_of_the_behavior_is_no_control_of_it() -> None:
    taken = str(harmless().look_alikes[0])
    examples = read_behavior([*COMPLIES, {**COMPLIES[0], "prompt": taken}])
    assert taken not in [one.prompt for one in not_among(examples)]
    assert len(not_among(examples)) == len(harmless().examples) - 1


def test_the_decision_says_whose_the_controls_are(loaded: LoadedModel) -> None:
    probe = build_from_behavior("b", COMPLIES, loaded, CONFIG)
    assert probe.contexts is not None
    known = known_pairs(probe, 3, "controlled", torch.cat([probe.contexts[:, 0]]).mean(dim=0))
    assert known is not None and known.are_controls_own
