"""Baselines that ask others: an endpoint, which may fail and must not be paid twice, and bergson in its environment."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from tests.audit_cases import RUDE, auditor_of, pair_rows, tiny_loaded, tiny_probe
from tests.behaviors.test_judges import Service, answer, service
from tests.evidence.test_baselines import pair_set, unkind
from trl_attribution.behaviors import EndpointConfig, EndpointJudge, read_behavior
from trl_attribution.behaviors.encoding import encode_example
from trl_attribution.errors import JudgeError, ModelError, SettingsError
from trl_attribution.evidence.baselines import (
    Audited,
    BaselineConfig,
    EndpointRanking,
    GradientConfig,
    GradientCosine,
    PairSet,
    compare,
    parse_baseline,
)
from trl_attribution.models import LoadedModel
from trl_attribution.pairs import Encoding, PairReader, encode_pair

__all__ = ["service"]  # the fixture

BERGSON = os.environ.get("TRL_ATTRIBUTION_BERGSON", "")
needs_bergson = pytest.mark.skipif(
    not BERGSON,
    reason="TRL_ATTRIBUTION_BERGSON names no interpreter that has bergson (docs/how-to/compare-with-baselines.md)",
)
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
    with pytest.raises(SettingsError, match="has format version 2; this trl-attribution reads up to 1"):
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


def gradient(loaded: LoadedModel, python: str, work: Path | None = None, **settings: Any) -> GradientCosine:
    config = GradientConfig(python, **settings)
    digest = loaded.fingerprint.digest
    return GradientCosine(lambda: loaded, digest, Encoding(), read_behavior(RUDE), config, work)


def test_an_interpreter_without_bergson_is_named(tmp_path: Path) -> None:
    loaded = tiny_loaded()
    with pytest.raises(SettingsError, match="is a Python without bergson; see docs/how-to/compare-with-baselines.md"):
        gradient(loaded, sys.executable)(pair_set(ROWS))
    with pytest.raises(SettingsError, match="/nowhere/python cannot be run"):
        gradient(loaded, "/nowhere/python")(pair_set(ROWS))


def exact_gradients(loaded: LoadedModel, sides: list[Any]) -> np.ndarray[Any, Any]:
    """Of each response's log-likelihood, by the weights of all linear layers within the blocks, unprojected."""
    weights = [module.weight for module in loaded.model.model.modules() if isinstance(module, torch.nn.Linear)]
    rows = []
    for side in sides:
        ids = torch.tensor([[*side.prompt_ids, *side.response_ids]])
        logits = loaded.model(ids).logits[0, :-1].log_softmax(-1)
        start = len(side.prompt_ids) - 1
        total = logits[start:].gather(1, ids[0, 1 + start :, None]).sum()
        found = torch.autograd.grad(total, weights)
        rows.append(torch.cat([one.flatten() for one in found]).double().numpy())
    return np.stack(rows)


def exact_cosines(loaded: LoadedModel, pairs: PairSet) -> list[float]:
    def unit(row: Any) -> Any:
        return row / np.linalg.norm(row)

    directions = []
    for one in read_behavior(RUDE).examples:
        example = encode_example(one, loaded.tokenizer, Encoding(), "auto")
        sides = [exact_gradients(loaded, list(each)).mean(axis=0) for each in (example.undesired, example.desired)]
        directions.append(unit(sides[0] - sides[1]))
    behavior = unit(np.mean(directions, axis=0))
    scores = []
    for pair in pairs:
        encoded = encode_pair(pair, loaded.tokenizer, Encoding())
        chosen, rejected = exact_gradients(loaded, [encoded.chosen, encoded.rejected])
        scores.append(float(unit(chosen - rejected) @ behavior))
    return scores


@needs_bergson
@pytest.mark.slow
def test_gradients_by_bergson_rank_as_exact_ones_do_and_a_killed_run_goes_on(tmp_path: Path) -> None:
    loaded = tiny_loaded()
    rows = pair_rows(12)
    found = gradient(loaded, BERGSON, projection=32, chunk=5)(pair_set(rows))
    exact = exact_cosines(loaded, pair_set(rows))
    assert spearmanr(list(found.scores.values()), exact).statistic > 0.95
    assert list(found.scores.values()) == pytest.approx(exact, abs=0.1)
    assert found.cost.seconds > 0 and found.cost.flops is not None
    # A run that lost its last chunk computes only that one.
    work = tmp_path / "work"
    work.mkdir()
    kept = {"scores": [[pair.pair_id, 0.125] for pair in PairReader(rows[:5])], "seconds": 1000.0}
    (work / "scores-5-000000.json").write_text(json.dumps(kept))
    again = gradient(loaded, BERGSON, work, projection=32, chunk=5)(pair_set(rows))
    assert list(again.scores.values())[:5] == [0.125] * 5
    assert list(again.scores.values())[5:] == pytest.approx(list(found.scores.values())[5:], abs=1e-4)
    assert again.cost.seconds > 1000 and not work.exists()


@needs_bergson
@pytest.mark.slow
def test_what_bergson_says_last_is_in_the_error(tmp_path: Path) -> None:
    loaded = tiny_loaded()
    (tmp_path / "gradients.part").write_text("a file in the way")
    (tmp_path / "direction.npy").write_bytes(b"not an array")
    with pytest.raises(ModelError, match=r"bergson ended with code 1: .*Run the same command to go on"):
        gradient(loaded, BERGSON, tmp_path)(pair_set(ROWS))
