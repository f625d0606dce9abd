"""The templates for clusters come to the audit that one command makes."""

from __future__ import annotations

import runpy
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.audit_cases import auditor_of, pair_rows, score_rows, tiny_loaded, tiny_probe
from tests.commands import Commands
from tests.gate_cases import write_rows
from trl_attribution.probes import ProbeRegistry

CLUSTERS = Path(__file__).resolve().parents[1] / "examples" / "clusters"
SHARES = 2


def on_slurm() -> Iterator[str]:
    script = f"bash {CLUSTERS}/audit.slurm m0 data.jsonl probes audit"
    for task in range(1, SHARES + 1):
        yield f"SLURM_ARRAY_TASK_ID={task} SLURM_ARRAY_TASK_COUNT={SHARES} {script}"
    yield script


def on_skypilot() -> Iterator[str]:
    given = "export MODEL=m0 DATA=data.jsonl PROBES=probes OUTPUT=audit"
    _, shares, merge = yaml.safe_load_all((CLUSTERS / "audit.sky.yaml").read_text())
    for rank in range(SHARES):
        yield f"{given} SKYPILOT_NODE_RANK={rank} SKYPILOT_NUM_NODES={SHARES}\n{shares['run']}"
    yield f"{given}\n{merge['run']}"


def on_ray() -> Iterator[str]:
    arguments = ["m0", "data.jsonl", "--probes", "probes", "-o", "audit"]
    shares, merge = runpy.run_path(str(CLUSTERS / "audit_on_ray.py"))["commands"](SHARES, arguments)
    yield from map(" ".join, [*shares, merge])


@pytest.mark.parametrize("template", [on_slurm, on_skypilot, on_ray])
def test_a_template_makes_the_audit_of_one_command(
    template: Callable[[], Iterator[str]], model_folder: Path, tmp_path: Path, commands: Commands
) -> None:
    loaded = tiny_loaded()
    (tmp_path / "m0").symlink_to(model_folder)
    ProbeRegistry(tmp_path / "probes").save(tiny_probe(loaded))
    write_rows(tmp_path / "data.jsonl", pair_rows(6))
    for command in template():
        done = commands.run(tmp_path, "bash", "-c", command)
        assert done.returncode == 0, done.stderr
    auditor_of(loaded, ProbeRegistry(tmp_path / "probes"), vector_dtype="float16").audit(
        tmp_path / "data.jsonl", tmp_path / "alone", results=False
    )
    together, alone = (
        {(row["pair_id"], row["layer"]): row["score"] for row in score_rows(tmp_path / name)}
        for name in ("audit", "alone")
    )
    assert together == pytest.approx(alone, abs=0.01)  # another dtype, and shares batched otherwise
