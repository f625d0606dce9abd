"""Baselines that ask others: an endpoint, which may fail and must not be paid twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.audit_cases import auditor_of, tiny_loaded, tiny_probe
from tests.behaviors.test_judges import Service, answer, service
from tests.evidence.test_baselines import pair_set, unkind
from trl_attribution.behaviors import EndpointConfig, EndpointJudge
from trl_attribution.errors import JudgeError, SettingsError
from trl_attribution.evidence.baselines import (
    Audited,
    BaselineConfig,
    EndpointRanking,
    compare,
    parse_baseline,
)

__all__ = ["service"]  # the fixture

ROWS = [unkind(n, shows=n % 3 == 0) for n in range(9)] + [
    {"prompt": f"Hi {n}.", "chosen": "Hello, friend.", "rejected": "Good day."} for n in range(3)
]
CALLS = 2 * 9 + 2 * 3


def judge(service: Service, **settings: Any) -> EndpointJudge:
    return EndpointJudge(service.url, "judge-7b", config=EndpointConfig(timeout=2.0, backoff=0.01, **settings))


def test_a_pair_ranks_high_where_the_judge_sees_the_behavior_in_the_chosen_response_alone(service: Service) -> None:
    found = EndpointRanking(judge(service))(pair_set(ROWS))
    assert list(found.scores.values()) == [1.0 if n % 3 == 0 else -1.0 for n in range(9)] + [0.0] * 3
    assert found.cost.calls == len(service.requests) == CALLS
    assert found.notes == (
        "behavior seen in the chosen response alone: 3 pairs, in the rejected one alone: 6, in both or none: 3",
    )


def test_verdicts_that_were_paid_for_outlive_a_failure(service: Service, tmp_path: Path) -> None:
    kept = tmp_path / "verdicts.jsonl"
    service.misbehave = lambda number, handler: number > 10 and answer(handler, 400, b"no")
    with pytest.raises(JudgeError, match="10 verdicts are kept in .*verdicts.jsonl: the same command goes on"):
        EndpointRanking(judge(service, parallel=1), kept)(pair_set(ROWS))
    service.misbehave = lambda _, __: False
    kept.write_text(kept.read_text() + '{"response": "tor')  # as a kill leaves it
    found = EndpointRanking(judge(service, parallel=1), kept)(pair_set(ROWS))
    assert found.scores == EndpointRanking(judge(service))(pair_set(ROWS)).scores
    assert found.cost.calls == CALLS - 10
    assert "10 verdicts were there from an earlier run" in found.notes
    again = EndpointRanking(judge(service), kept)(pair_set(ROWS))
    assert (again.scores, again.cost.calls) == (found.scores, 0)


def test_verdicts_of_another_judge_are_refused(service: Service, tmp_path: Path) -> None:
    kept = tmp_path / "verdicts.jsonl"
    EndpointRanking(judge(service), kept)(pair_set(ROWS[:2]))
    other = EndpointJudge(service.url, "judge-13b")
    with pytest.raises(SettingsError, match=r"verdicts\.jsonl is of another judge"):
        EndpointRanking(other, kept)(pair_set(ROWS[:2]))
    kept.write_text(kept.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(SettingsError, match="has version 2, this reads up to 1"):
        EndpointRanking(judge(service), kept)(pair_set(ROWS[:2]))


@pytest.mark.parametrize("written", [0, 1, 40])
def test_a_file_of_verdicts_that_was_killed_in_its_first_line_is_begun_anew(
    written: int, service: Service, tmp_path: Path
) -> None:
    kept = tmp_path / "verdicts.jsonl"
    EndpointRanking(judge(service), kept)(pair_set(ROWS[:1]))
    whole = kept.read_bytes()
    kept.write_bytes(whole[:written])
    EndpointRanking(judge(service), kept)(pair_set(ROWS[:1]))
    assert kept.read_bytes() == whole


def test_a_budget_that_cannot_suffice_is_refused_before_the_first_call(service: Service, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=f"{CALLS} responses wait for a verdict.*budget is 20 calls"):
        EndpointRanking(judge(service, max_calls=20), tmp_path / "v.jsonl")(pair_set(ROWS))
    assert service.requests == [] and list(tmp_path.iterdir()) == []


def test_a_comparison_keeps_an_endpoints_verdicts_and_never_its_key(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THE_KEY", "sk-secret")
    loaded = tiny_loaded()
    auditor_of(loaded, [tiny_probe(loaded)]).audit(ROWS, tmp_path / "audit")
    audited = Audited.open(tmp_path / "audit")
    config = BaselineConfig(endpoint=EndpointConfig("THE_KEY", timeout=2.0, backoff=0.01))
    name = f"endpoint:{service.url}#judge-7b#Is it rude?"
    found = compare(audited, ROWS, [parse_baseline(name, config)], k=3, keep=tmp_path / "kept")
    assert found.rows[1].name == name and found.rows[1].cost.calls == CALLS
    endings = {path.name.partition(".")[2] for path in (tmp_path / "kept").iterdir()}
    assert endings == {"json", "scores.jsonl", "verdicts.jsonl"}
    assert all("secret" not in path.read_text() for path in (tmp_path / "kept").iterdir())
