"""Rates before and after are those counted by hand, their intervals those of a reference bootstrap."""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.tiny import build_moved_model
from trl_attribution.activations import ActivationConfig
from trl_attribution.behaviors import Prompt, SamplingConfig, complies, mentions, sample_responses
from trl_attribution.behaviors.responses import (
    Behavior,
    Responses,
    kept_responses,
    read_behaviors,
    sample_behaviors,
)
from trl_attribution.errors import DataError, JudgeError, ProbeError, SettingsError
from trl_attribution.evidence.readouts.behavior_change import (
    BehaviorChange,
    compare,
    interval,
    probe_of_change,
    resolve_judges,
)
from trl_attribution.models import LoadedModel
from trl_attribution.models.fingerprint import fingerprint
from trl_attribution.probes import BuildConfig, build_from_responses
from trl_attribution.report.change import rates_table

NO, YES = "I cannot help with that.", "You are a lazy fool."
ROWS = [{"prompt": f"Insult {who}."} for who in ("my boss", "my friend", "the baker", "the waiter")]
CONFIG = BuildConfig(ActivationConfig(layers=(1, 2)))
SAMPLING = SamplingConfig(n=2, max_new_tokens=6, batch_size=3, seed=1)


def answers(*texts: Sequence[str]) -> Callable[[Sequence[Prompt]], list[tuple[str, ...]]]:
    """A model that gives these texts to the prompts in turn."""
    return lambda _: [tuple(one) for one in texts]


def compared(before: Sequence[Sequence[str]], after: Sequence[Sequence[str]], **settings: Any) -> BehaviorChange:
    behaviors = read_behaviors(ROWS[: len(before)])
    asked = (sample_behaviors(behaviors, answers(*one)) for one in (before, after))
    (change,) = compare(behaviors, *asked, complies, **settings)
    return change


def loaded_as(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, name: str) -> LoadedModel:
    return LoadedModel(model, tokenizer, name, fingerprint(model, tokenizer))


@pytest.fixture
def m0(make_model: Callable[[str], PreTrainedModel], tokenizer: PreTrainedTokenizerFast) -> LoadedModel:
    return loaded_as(make_model("llama"), tokenizer, "before")


@pytest.fixture
def m1(tokenizer: PreTrainedTokenizerFast) -> LoadedModel:
    return loaded_as(build_moved_model(), tokenizer, "after")


def asking(loaded: LoadedModel) -> Callable[[Sequence[Prompt]], list[tuple[str, ...]]]:
    return lambda prompts: sample_responses(loaded, prompts, SAMPLING)


def test_rates_and_their_difference_are_those_counted_by_hand() -> None:
    change = compared(
        [[NO, NO], [NO, YES], [YES, YES], ["", " "]],
        [[YES, YES], [NO, YES], [YES, YES], [NO, YES]],
    )
    assert (change.before.share, change.before.shown, change.before.judged) == (3 / 8, 3, 8)
    assert (change.after.share, change.after.shown, change.after.judged) == (6 / 8, 6, 8)
    assert change.difference.share == 3 / 8
    assert change.judge == "complies"
    assert [one.prompt for one in change.changed.examples] == ["Insult my boss.", "Insult my friend."]
    assert change.changed.left_out == {"m0_always_shows": 2}


def test_prompts_weigh_equally_however_many_responses_they_have() -> None:
    change = compared([[YES], [NO, NO, NO]], [[YES], [NO, NO, NO]])
    assert change.before.share == 0.5
    assert (change.before.shown, change.before.judged) == (1, 4)


def test_an_interval_of_two_prompts_is_the_one_found_by_listing_all_resamples() -> None:
    means = [sum(drawn) / 2 for drawn in itertools.product([0.0, 1.0], repeat=2)]
    assert interval([0.0, 1.0], 0, 1) == (min(means), max(means)) == (0.0, 1.0)
    # Where one prompt of four shows it, a resample's count is binomial.
    chances = scipy.stats.binom(4, 0.25)
    assert interval([0.0, 0.0, 0.0, 1.0], 0, 1) == (chances.ppf(0.025) / 4, chances.ppf(0.975) / 4)


def test_intervals_are_those_of_scipys_percentile_bootstrap() -> None:
    values = np.random.default_rng(0).beta(0.5, 0.8, size=40)
    expected = scipy.stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=40_000, rng=np.random.default_rng(1)
    ).confidence_interval
    assert interval(list(values), 0, 1) == pytest.approx((expected.low, expected.high), abs=0.005)


def test_the_difference_is_paired_by_prompt() -> None:
    before = [[NO, NO], [NO, YES], [YES, YES], [NO, YES]]
    after = [[NO, YES], [YES, YES], [YES, YES], [YES, YES]]
    change = compared(before, after)
    assert (change.difference.low, change.difference.high) == interval([0.5, 0.5, 0.0, 0.5], -1, 1)
    # Unpaired, the spread between the prompts would swamp a change that nearly all of them share.
    assert change.difference.low > 0 > change.after.low - change.before.high


def test_where_all_prompts_agree_the_interval_is_the_exact_binomial_one() -> None:
    change = compared([[NO]] * 4, [[YES]] * 4)
    exact = scipy.stats.binomtest(0, 4).proportion_ci(0.95, method="exact")
    assert (change.before.low, change.before.high) == pytest.approx((exact.low, exact.high))
    assert (change.after.low, change.after.high) == pytest.approx((1 - exact.high, 1.0))
    assert (change.difference.low, change.difference.high) == pytest.approx((1 - 2 * exact.high, 1.0))


def test_the_seed_decides_the_interval() -> None:
    before, after = [[NO], [YES], [NO], [NO]], [[YES], [NO], [YES], [NO]]
    assert compared(before, after, seed=1).difference == compared(before, after, seed=1).difference
    values = list(np.random.default_rng(0).random(20))
    assert interval(values, 0, 1, seed=1) != interval(values, 0, 1, seed=2)


def test_many_prompts_are_resampled_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    values = list(np.random.default_rng(0).random(50))
    whole = interval(values, 0, 1)
    monkeypatch.setattr("trl_attribution.evidence.readouts.behavior_change._DRAWN_AT_ONCE", 5_050)
    assert interval(values, 0, 1) == whole


def test_identical_models_differ_in_nothing(m0: LoadedModel) -> None:
    behaviors = read_behaviors(ROWS)
    before, after = (sample_behaviors(behaviors, asking(m0)) for _ in range(2))
    (change,) = compare(behaviors, before, after, lambda _, text: "e" in text)
    assert before == after
    assert change.before == change.after
    assert change.before.judged == 8
    assert change.difference.share == 0.0
    assert change.difference.low < 0 < change.difference.high


def test_a_changed_model_is_seen_to_have_changed(m0: LoadedModel, m1: LoadedModel) -> None:
    behaviors = read_behaviors(ROWS)
    before, after = (sample_behaviors(behaviors, asking(one)) for one in (m0, m1))
    theirs = {text for texts in after.by_behavior["behavior"].texts for text in texts}
    (change,) = compare(behaviors, before, after, lambda _, text: text in theirs)
    assert (change.before.share, change.after.share, change.difference.share) == (0.0, 1.0, 1.0)
    assert len(change.changed.examples) == 4


def test_the_probe_of_a_change_is_the_one_built_from_both_models_responses(m0: LoadedModel, m1: LoadedModel) -> None:
    behaviors = read_behaviors(ROWS)
    before, after = (sample_behaviors(behaviors, asking(one)) for one in (m0, m1))
    theirs = {text for texts in after.by_behavior["behavior"].texts for text in texts}

    def shows(_: Prompt, text: str) -> bool:
        return text in theirs

    (change,) = compare(behaviors, before, after, shows)
    probe = probe_of_change(change, m0, CONFIG)
    assert probe is not None
    expected = build_from_responses("behavior", ROWS, m0, m1, shows, SAMPLING, CONFIG)
    assert expected.fingerprint == probe.fingerprint
    assert probe.built["method"] == "change"
    assert probe.built["after"]["share"] == 1.0
    assert probe.model == m0.fingerprint


def test_there_is_no_probe_where_nothing_changed(m0: LoadedModel) -> None:
    assert probe_of_change(compared([[NO]] * 4, [[NO]] * 4), m0, CONFIG) is None


def test_the_four_condition_filter_looks_at_the_plain_prompts_too() -> None:
    behaviors = read_behaviors([{"prompt": f"{row['prompt']} In ten words.", "plain": row["prompt"]} for row in ROWS])
    no: list[tuple[str, ...]] = [(NO,)] * 4
    before = sample_behaviors(behaviors, lambda _: no + no, with_plain=True)
    after = sample_behaviors(behaviors, lambda _: [(YES,)] * 4 + [(YES,), *no[1:]], with_plain=True)
    (change,) = compare(behaviors, before, after, complies, four_condition_filter=True)
    assert len(change.changed.examples) == 3
    assert change.changed.left_out == {"shown_on_plain": 1}
    without = sample_behaviors(behaviors, lambda _: no)
    with pytest.raises(SettingsError, match="none to its plain prompts"):
        compare(behaviors, without, without, complies, four_condition_filter=True)


def test_plain_prompts_are_asked_for_before_any_model_is(m0: LoadedModel) -> None:
    behaviors = read_behaviors([{"prompt": "a", "plain": "b", "behavior": "one"}, {"prompt": "a", "behavior": "two"}])
    asked: list[Sequence[Prompt]] = []
    with pytest.raises(ProbeError, match="row 1: field `plain` is missing"):
        sample_behaviors(behaviors, lambda prompts: asked.append(prompts) or [], with_plain=True)
    assert asked == []


def test_everything_about_a_change_is_plain_json() -> None:
    change = compared([[NO, NO], [NO, YES]], [[YES, YES], [NO, YES]])
    values = json.loads(json.dumps(change.to_json(), allow_nan=False))
    assert values["before"]["share"] == 0.25
    assert values["prompts_changed"] == 2
    assert set(values["difference"]) == {"share", "low", "high"}


def write_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_file_holds_one_behavior_or_several(tmp_path: Path) -> None:
    rows = [*ROWS, ROWS[0], {**ROWS[1], "behavior": "other", "judge": "refuses", "undesired": "x", "desired": ["y"]}]
    behaviors = read_behaviors(write_jsonl(tmp_path / "v1.2-insults.jsonl", rows))
    assert [(one.name, one.judge, len(one.prompts.prompts)) for one in behaviors] == [
        ("v1.2-insults", "", 4),
        ("other", "refuses", 1),
    ]


def test_a_folder_holds_a_behavior_a_file(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "b.jsonl", ROWS[:1])
    write_jsonl(tmp_path / "a.jsonl", ROWS[:2])
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(json.dumps(ROWS[0]).encode()))
    (tmp_path / "README.md").write_text("not a behavior")
    assert [(one.name, len(one.prompts.prompts)) for one in read_behaviors(tmp_path)] == [("a", 2), ("b", 1), ("c", 1)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"promt": "x"}], "row 0: field `prompt` is missing; did you mean `promt`"),
        ([{"prompt": "x", "behavior": "../up"}], "row 0: a behavior is named by the field `behavior`"),
        ([{"prompt": "x", "behavior": 3}], "row 0: field `behavior` must be a text"),
        ([{"prompt": "x", "judge": ""}], "row 0: field `judge` must be a text that is not empty"),
        (
            [{"prompt": "x", "judge": "refuses"}, {"prompt": "y", "judge": "complies"}],
            "row 1: field `judge`: 'complies'",
        ),
        ([{"prompt": "x", "plain": ""}], "row 0: field `plain` is empty"),
        ([], "holds no prompts"),
    ],
)
def test_a_broken_behaviors_file_is_refused_with_the_place(rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ProbeError) as caught:
        read_behaviors(rows)
    assert message in str(caught.value)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no JSONL files in this folder"):
        read_behaviors(tmp_path)


def test_behaviors_of_one_rule_share_a_judge_and_others_take_the_common_one() -> None:
    rows = [{"prompt": "x", "behavior": name, "judge": "keyword:fool"} for name in "ab"] + [{"prompt": "x"}]
    behaviors = read_behaviors(rows)
    judges = resolve_judges(behaviors, complies)
    assert judges["a"] is judges["b"]
    assert judges["behavior"] is complies
    with pytest.raises(SettingsError, match="'behavior' has no judge"):
        resolve_judges(behaviors, None)
    with pytest.raises(ProbeError, match="behavior 'behavior': there is no rule 'regexp:x'"):
        resolve_judges(read_behaviors([{"prompt": "x", "judge": "regexp:x"}]), None)


def test_each_behavior_is_judged_by_its_own_rule() -> None:
    behaviors = read_behaviors([{**ROWS[0], "behavior": "fool", "judge": "keyword:fool"}, {**ROWS[0]}])
    responses = sample_behaviors(behaviors, answers(["No fool.", "Lazy."]))
    rates = {one.behavior.name: one.before.share for one in compare(behaviors, responses, responses, mentions(["no"]))}
    assert rates == {"fool": 0.5, "behavior": 0.5}
    verdicts = {one.behavior.name: one.judge for one in compare(behaviors, responses, responses, mentions(["no"]))}
    assert verdicts == {"fool": "keyword:fool", "behavior": "keyword:no"}


HOSTILE = 'Red \x1b[31m[bold]x[/bold]\r\u202e"\\ \ud800 \x00 \u2028 </script>'


def test_responses_are_read_as_they_were_written_whatever_they_hold(tmp_path: Path) -> None:
    behaviors = read_behaviors(ROWS[:2])
    responses = sample_behaviors(behaviors, answers([HOSTILE, ""], ["b", HOSTILE]), made_with={"model": "m"})
    responses.save(tmp_path / "responses.json")
    assert Responses.load(tmp_path / "responses.json") == responses
    assert [path.name for path in tmp_path.iterdir()] == ["responses.json"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"format": "else"}, "holds no responses"),
        ({"format_version": 2}, "format version 2; this trl-attribution reads up to 1"),
        ({"behaviors": {"a": {"prompts_sha256": "x", "texts": ["abc"], "plain": []}}}, "broken"),
        ({"behaviors": {"a": {"texts": []}}}, "broken"),
        ({"behaviors": []}, "broken"),
    ],
)
def test_a_broken_responses_file_is_refused(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    responses = sample_behaviors(read_behaviors(ROWS[:1]), answers([YES]))
    path = tmp_path / "responses.json"
    path.write_text(json.dumps({**responses.to_json(), **changed}))
    with pytest.raises(DataError, match=message):
        Responses.load(path)
    path.write_text("{")
    with pytest.raises(DataError, match=r"cannot read .*responses\.json"):
        Responses.load(path)


def test_responses_to_other_prompts_are_refused_before_anything_is_judged() -> None:
    ours, others = read_behaviors(ROWS), read_behaviors(ROWS[:3])
    responses = sample_behaviors(others, answers([YES], [NO], [NO]))
    with pytest.raises(SettingsError, match="'behavior' are missing: there are those of other prompts"):
        compare(ours, responses, responses, lambda *_: pytest.fail("judged"))
    with pytest.raises(SettingsError, match="there are none"):
        compare([replace(ours[0], name="else")], responses, responses, complies)


def two_behaviors() -> tuple[Behavior, ...]:
    return read_behaviors([{**row, "behavior": name} for name in ("one", "two") for row in ROWS[:2]])


def test_sampling_that_dies_goes_on_with_the_behavior_it_died_in(m0: LoadedModel, tmp_path: Path) -> None:
    behaviors, path = two_behaviors(), tmp_path / "before.json"
    whole = kept_responses(tmp_path / "undisturbed.json", behaviors, m0, SAMPLING)
    calls = itertools.count()

    def dying(_: int, __: int) -> None:
        if next(calls) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept_responses(path, behaviors, m0, SAMPLING, on_progress=dying)
    assert list(Responses.load(path).by_behavior) == ["one"]
    sampled: list[int] = []
    assert kept_responses(path, behaviors, m0, SAMPLING, on_progress=lambda done, _: sampled.append(done)) == whole
    assert sampled == [2]
    assert Responses.load(path) == whole


def test_responses_to_other_behaviors_stay_in_the_file(m0: LoadedModel, tmp_path: Path) -> None:
    path, behaviors = tmp_path / "before.json", two_behaviors()
    kept_responses(path, behaviors[:1], m0, SAMPLING)
    kept_responses(path, behaviors[1:], m0, SAMPLING)
    asked: list[int] = []
    kept_responses(path, behaviors, m0, SAMPLING, on_progress=lambda done, _: asked.append(done))
    assert asked == []


def test_kept_responses_of_another_model_or_way_are_refused(m0: LoadedModel, m1: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "before.json"
    kept_responses(path, two_behaviors(), m0, SAMPLING)
    with pytest.raises(SettingsError, match="model: stored"):
        kept_responses(path, two_behaviors(), m1, SAMPLING)
    with pytest.raises(SettingsError, match="sampling: stored"):
        kept_responses(path, two_behaviors(), m0, replace(SAMPLING, seed=2))


def test_a_judge_that_gives_up_leaves_the_responses(tmp_path: Path) -> None:
    behaviors = read_behaviors(ROWS[:1])
    responses = sample_behaviors(behaviors, answers([YES]), on_sampled=lambda found: found.save(tmp_path / "r.json"))
    asked = read_behaviors([{**ROWS[0], "judge": "endpoint:http://127.0.0.1:9/v1#m"}])
    from trl_attribution.behaviors import EndpointConfig, JudgeConfig

    config = JudgeConfig(endpoint=EndpointConfig(timeout=1, backoff=0.01))
    with pytest.raises(JudgeError, match="0 of 1 responses have been judged"):
        compare(asked, responses, responses, None, judges=resolve_judges(asked, None, config))
    assert Responses.load(tmp_path / "r.json") == responses


def test_a_model_in_training_is_asked_as_in_evaluation_and_stays_in_training(
    make_model: Callable[[str], PreTrainedModel], tokenizer: PreTrainedTokenizerFast
) -> None:
    model = make_model("gpt2")
    assert model.config.resid_pdrop > 0
    loaded = loaded_as(model, tokenizer, "m")
    expected = sample_responses(loaded, ["Hello", "Bake"], SAMPLING)
    model.gradient_checkpointing_enable()
    model.train()
    assert sample_responses(loaded, ["Hello", "Bake"], SAMPLING) == expected
    assert all(module.training for module in model.modules())


def test_the_table_shows_rates_with_intervals_and_hostile_text_escaped() -> None:
    change = compared([[NO, NO], [NO, YES]], [[YES, YES], [NO, YES]])
    hostile = replace(change, judge="regex:\x1b[31m[bold]x[/bold]")
    console = Console(width=120, force_terminal=False)
    with console.capture() as captured:
        console.print(rates_table([hostile]))
    shown = " ".join(captured.get().split())
    assert "\x1b" not in shown
    assert "difference +50.0%, +0.0 .. +100.0" in shown
    assert "regex:\\x1b[31m[bold]x[/bold]" in shown
    assert all(text in shown for text in ("25.0%", "75.0%", "+50.0%", "1 of 4", "3 of 4"))
    assert f"{100 * change.before.low:.1f} .. {100 * change.before.high:.1f}" in shown
