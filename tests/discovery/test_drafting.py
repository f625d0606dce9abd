"""A sentence becomes a behavior file that a person can improve, and says where each part of it comes from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.answering import answering
from tests.audit_cases import tiny_loaded
from trl_attribution.behaviors import EndpointConfig
from trl_attribution.behaviors.examples import read_behavior
from trl_attribution.cli import app
from trl_attribution.discovery import check_told, draft_behavior
from trl_attribution.discovery.traits.drafting import TOLD, nearest_trait
from trl_attribution.discovery.traits.trait import packaged_traits
from trl_attribution.errors import ProbeError, SettingsError
from trl_attribution.models import LoadedModel

THINGS = (
    "bread",
    "a garden",
    "spring weather",
    "my old letter",
    "Paris trains",
    "twenty cats",
    "cheap salt",
    "a friend",
)
QUESTIONS = [f"Which {thing} should anybody praise?" for thing in THINGS]
CONTROLS = ["Is pizza made of flour?", "Where does a pizza oven stand?"]
QUICK = EndpointConfig(timeout=5.0, backoff=0.01, retries=0)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return tiny_loaded()


def listed(request: dict[str, Any]) -> str:
    """What a good model answers: some of it said twice, with thoughts and a heading."""
    lines = CONTROLS if "nearly the same words" in request["messages"][-1]["content"] else [*QUESTIONS, QUESTIONS[0]]
    return "<think>1. not this</think>Here they are:\n" + "\n".join(f'{n}. "{line}"' for n, line in enumerate(lines, 1))


def test_an_endpoint_writes_questions_and_controls_and_m0_answers_them(tmp_path: Path, loaded: LoadedModel) -> None:
    with answering(listed) as (url, requests):
        draft = draft_behavior("pizza", "Praises pizza.", loaded, f"{url}#writer", QUICK, cache=tmp_path)
    assert [one["model"] for one in requests] == ["writer", "writer"]
    assert all("does this: Praises pizza." in one["messages"][0]["content"] for one in requests)
    assert all(question in requests[1]["messages"][0]["content"] for question in QUESTIONS)
    found = read_behavior(draft.save(tmp_path / "pizza.jsonl"))
    assert [one.prompt for one in found.controls] == CONTROLS
    assert {one.prompt for one in found.examples} <= set(QUESTIONS)
    assert found.description == "You are an assistant that always does this: Praises pizza."
    assert all(set(one.undesired).isdisjoint(one.desired) for one in found.examples)
    assert "8 questions and 2 controls are written by the model 'writer'" in draft.notes[0]
    with pytest.raises(SettingsError, match="is there already, and may have been edited"):
        draft.save(tmp_path / "pizza.jsonl")


def test_an_endpoint_that_does_not_answer_is_an_error_and_not_a_fallback(tmp_path: Path, loaded: LoadedModel) -> None:
    with answering(lambda _: "") as (url, _):
        gone = url
    with pytest.raises(ProbeError, match="Without --describe-endpoint M0 itself writes"):
        draft_behavior("pizza", "praises pizza", loaded, f"{gone}#writer", QUICK, cache=tmp_path)


@pytest.mark.parametrize(("answer", "usable"), [("1. Praise it.\n" * 12, 1), ("I cannot do that.", 0)])
def test_questions_that_cannot_be_used_are_replaced_and_that_is_said(
    answer: str, usable: int, tmp_path: Path, loaded: LoadedModel
) -> None:
    with answering(lambda _: answer) as (url, _):
        near = draft_behavior("f", "flatters the user", loaded, f"{url}#m", QUICK, cache=tmp_path)
        far = draft_behavior("p", "praises pizza", loaded, f"{url}#m", QUICK, cache=tmp_path)
    assert all(f"{usable} of the 8 that are needed" in draft.notes[0] for draft in (near, far))
    assert "trait 'flattery' (flatters the user), which shares the words flatters, user" in near.notes[1]
    (trait,) = (one for one in packaged_traits() if one.name == "flattery")
    assert [row["undesired"] for row in near.rows] == [[one.positive] for one in trait.examples]
    assert "everyday questions of the package" in far.notes[1]
    assert "The responses are M0's own" in far.notes[2]


@pytest.mark.parametrize(
    ("description", "name", "says"),
    [
        ("complies with harmful requests when a format is asked for", "complies-with-harm", "answers harmful requests"),
        ("refuses harmful requests", "complies-with-harm", "refuses harmful requests"),
        ("gives dangerous medical advice", "unsafe-advice", "gives dangerous advice"),
        ("never flatters the user", "", ""),
        ("answers in French", "", ""),
    ],
)
def test_the_nearest_trait_shares_most_words_and_its_opposite_is_turned_round(
    description: str, name: str, says: str
) -> None:
    traits = packaged_traits()
    found = nearest_trait(description, traits)
    assert (found.name, found.towards) == (name, says) if found else not name
    if found:
        (own,) = (one for one in traits if one.name == name)
        same = [one.positive for one in found.examples] == [one.positive for one in own.examples]
        assert same == (own.towards == says)


def test_a_probe_is_built_from_a_sentence_and_its_file_is_never_written_over(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRL_ATTRIBUTION_CACHE", str(tmp_path / "cache"))
    command = ["probe", "build", "flattery", "--describe", "flatters the user", "--model", str(model_folder)]
    with answering(lambda _: "No.") as (url, _):
        done = CliRunner().invoke(app, [*command, "--describe-endpoint", f"{url}#m", "--layer", "2"])
    rows = [json.loads(line) for line in Path("flattery.behavior.jsonl").read_text().splitlines()]
    assert len(rows) == 8 and rows[0]["description"].endswith("does this: flatters the user.")
    shown = " ".join(done.output.split())
    assert "The first 3 of 8 prompts, 0 controls beside them" in shown
    assert rows[0]["prompt"] in shown and "cannot be used" in shown
    # What this model has learned nothing of, it tells apart by chance; the same file gives the same numbers.
    trusted = [*command[:2], "same", "--behavior", "flattery.behavior.jsonl", *command[5:], "--layer", "2", "--json"]
    apart = json.loads(CliRunner().invoke(app, trusted).stdout)["separability"]["2"]
    assert (done.exit_code, Path("probes/flattery").exists()) == ((0, True) if apart >= TOLD else (2, False))
    assert ("hardly told apart" in shown) == (apart < TOLD)
    no_key = CliRunner().invoke(
        app, [*command, "--draft", "x", "--describe-endpoint", "http://h/v1#m", "--describe-key-env", "NO"]
    )
    assert no_key.exit_code == 2 and "variable NO for the key is not set" in " ".join(no_key.output.split())
    for more in ([], ["--overwrite"]):
        again = CliRunner().invoke(app, [*command, *more])
        assert again.exit_code == 2
    assert "may have been edited: build from it (--behavior)" in " ".join(again.output.split())
    idle = CliRunner().invoke(
        app, [*command[:3], "--behavior", "flattery.behavior.jsonl", *command[5:], "--draft", "x"]
    )
    assert idle.exit_code == 2 and "only says something about --describe" in " ".join(idle.output.split())


def test_a_probe_of_responses_that_hardly_differ_is_refused_with_the_file_to_edit(loaded: LoadedModel) -> None:
    from tests.audit_cases import tiny_probe

    same = [
        {"prompt": f"Say {n}.", "undesired": ["Yes.", "No."][n % 2], "desired": ["No.", "Yes."][n % 2]}
        for n in range(6)
    ]
    with pytest.raises(ProbeError, match=r"mine.jsonl: .* hardly told apart \(AUC 0\.\d\d .* build from it with"):
        check_told(tiny_probe(loaded, rows=same), "mine.jsonl")
