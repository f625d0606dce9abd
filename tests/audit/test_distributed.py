"""An audit on several processes is the audit of one, whatever launcher, engine or accident there is; nothing hangs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from typer.testing import CliRunner

from tests.audit_cases import pair_rows, score_rows, tiny_loaded, tiny_probe
from tests.commands import Commands
from tests.manifest_cases import write_jsonl
from tests.store_cases import contents
from tests.tiny import build_tiny_model
from trl_attribution.activations import ActivationConfig, ActivationEngine
from trl_attribution.audit.auditor import DataAuditor
from trl_attribution.audit.info import AuditInfo
from trl_attribution.audit.shared_run import idle_note
from trl_attribution.cli import app
from trl_attribution.errors import AttributionError
from trl_attribution.models.fingerprint import fingerprint
from trl_attribution.models.sharding import load_sharded
from trl_attribution.pairs import Encoding, PairReader, encode_pairs
from trl_attribution.probes import ProbeRegistry
from trl_attribution.utils.distributed import OutOfStepError, Ranks, current_ranks, full_parameter, is_sharded

REPOSITORY = Path(__file__).parents[2]
CONFIGS = REPOSITORY / "examples" / "accelerate_configs"
SHARD_SIZE = 3
BUILDS = pytest.mark.skipif(shutil.which("g++") is None, reason="ZeRO-3 on CPU builds a DeepSpeed op with g++")
ZERO3, ZERO3_OFFLOAD = (pytest.param(name, marks=BUILDS) for name in ("zero3", "zero3_offload"))
MakeModel = Callable[[str], PreTrainedModel]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    """A folder with ``model/``, ``data.jsonl`` (7 blocks), ``probes/`` and ``alone/``, the audit of one process."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "model").symlink_to(model_folder)
    write_jsonl(folder / "data.jsonl", pair_rows(20))
    ProbeRegistry(folder / "probes").save(tiny_probe(tiny_loaded()))
    auditor = DataAuditor(
        folder / "model",
        probes=folder / "probes",
        dtype="float32",
        device="cpu",
        vector_dtype="float32",
        shard_size=SHARD_SIZE,
    )
    auditor.audit(folder / "data.jsonl", folder / "alone")
    return folder


def accelerate(config: str, python: str = sys.executable) -> list[str]:
    launcher = [python, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / f"{config}.yaml")]
    return [*launcher, "--num_processes", "2", "--main_process_port", "0"]


def torchrun(processes: int) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]


def audit_command(place: Path, output: Path, *more: str) -> list[str]:
    command = ["-m", "trl_attribution.cli", "audit", str(place / "model"), str(place / "data.jsonl"), "-o", str(output)]
    command += ["--probes", str(place / "probes"), "--top-k", "3", "--dtype", "float32", "--vector-dtype", "float32"]
    return [*command, "--shard-size", str(SHARD_SIZE), "--json", *more]


def start(command: list[str], programs: Commands) -> subprocess.Popen[str]:
    """Start a launcher whose ranks are ``programs``."""
    settings = {"ACCELERATE_USE_CPU": "true", "DS_ACCELERATOR": "cpu", "PYTHONPATH": "."}
    environment = {**os.environ, **programs.settings, **settings, "PYTHON_EXEC": programs.python}
    return subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(command: list[str], programs: Commands, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    process = start(command, programs)
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    except BaseException:
        process.terminate()  # the launcher takes its processes along
        process.communicate(timeout=30)
        raise
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def assert_equal_audits(found: Path, alone: Path) -> None:
    assert contents(found / "vectors") == contents(alone / "vectors")
    assert score_rows(found) == score_rows(alone)
    mine, theirs = AuditInfo.load(found), AuditInfo.load(alone)
    assert (mine.dataset.pairs, mine.model.digest) == (theirs.dataset.pairs, theirs.model.digest)
    assert not (found / "parts").exists()


def assert_printed(stdout: str, parts: int) -> None:
    printed = json.loads(stdout)  # one document: only the main process speaks
    assert printed["flagged"] == 3 and Path(printed["manifests"]["flip"]).is_file()
    assert printed["info"]["vectors"]["path"] == "packed"
    assert printed["info"]["cost"]["parts"] == parts


@pytest.mark.slow
@pytest.mark.parametrize("config", [ZERO3, ZERO3_OFFLOAD, "fsdp2"])  # ddp: the killed run below
def test_every_launch_config_comes_to_the_audit_of_one_process(
    config: str, place: Path, tmp_path: Path, commands: Commands
) -> None:
    done = run([*accelerate(config, commands.python), *audit_command(place, tmp_path / "audit")], commands)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_printed(done.stdout, parts=2)
    assert_equal_audits(tmp_path / "audit", place / "alone")


def test_every_launch_config_is_one_that_accelerate_reads() -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    found = {path.stem: load_config_from_file(str(path)) for path in CONFIGS.glob("*.yaml")}
    stages = {name: config.deepspeed_config.get("zero_stage") for name, config in found.items()}
    assert stages == {"ddp": None, "fsdp2": None, "zero1": 1, "zero2": 2, "zero3": 3, "zero3_offload": 3}
    assert found["fsdp2"].fsdp_config["fsdp_version"] == 2


@pytest.mark.slow
def test_an_error_on_one_rank_ends_all_of_them_and_is_told_once(
    place: Path, tmp_path: Path, commands: Commands
) -> None:
    part = tmp_path / "audit" / "parts" / "00001"
    part.mkdir(parents=True)
    (part / "shards").write_text("a file where rank 1 wants a folder")
    begun = time.monotonic()
    done = run([*accelerate("fsdp2", commands.python), *audit_command(place, tmp_path / "audit")], commands, timeout=60)
    assert time.monotonic() - begun < 60
    assert done.returncode != 0
    assert json.loads(done.stdout)["error"].startswith("1 of 2 ranks failed. Rank 1: cannot write")
    assert done.stderr.count("error: ") == 1 and "exitcode  : 2" in done.stderr
    assert "most recent call last" not in done.stderr.split("torch/distributed")[0]


@pytest.mark.slow
def test_devices_need_no_launcher(place: Path, tmp_path: Path, commands: Commands) -> None:
    command = [commands.python, *audit_command(place, tmp_path / "audit", "--devices", "2")]
    done = run(command, commands)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_printed(done.stdout, parts=2)
    assert_equal_audits(tmp_path / "audit", place / "alone")

    write_jsonl(tmp_path / "bad.jsonl", [*pair_rows(3), {"prompt": "Why?"}])
    command[command.index(str(place / "data.jsonl"))] = str(tmp_path / "bad.jsonl")
    refused = run([*command, "--json"], commands)
    assert refused.returncode == 2
    assert "bad.jsonl:4" in json.loads(refused.stdout)["error"]
    assert "torch" not in refused.stderr and "exitcode" not in refused.stderr  # nothing of the launcher's


@pytest.mark.parametrize(
    ("given", "world", "message"),
    [
        (["--devices", "2"], "4", "a launcher has started 4 processes"),
        (["--devices", "2", "--merge"], "1", "--merge runs on one process"),
        (["--devices", "2", "--dry-run"], "1", "--dry-run runs on one process"),
        (["--devices", "2", "--device", "cuda:1"], "1", "--device cuda:1 is one of them"),
    ],
)
def test_devices_that_make_no_sense_are_refused(
    given: list[str], world: str, message: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", world)
    done = CliRunner().invoke(app, [*audit_command(place, tmp_path / "audit")[2:], *given])
    assert done.exit_code == 2 and message in json.loads(done.stdout)["error"]


def test_ranks_that_had_nothing_to_compute_are_named() -> None:
    said = idle_note([196, 0], 512)
    assert said is not None and said.startswith("1 of 2 processes had nothing to compute")
    assert "--shard-size 98 " in said
    assert idle_note([100, 96], 98) is None
    assert idle_note([0, 0], 512) is None  # all was there already
    assert "--shard-size 1 " in str(idle_note([1, 0, 0], 512))


@pytest.mark.parametrize(("there", "said"), [(1, "model\n"), (8, "on one of 8 devices; --devices 8 takes all\n")])
def test_devices_that_nobody_asked_for_are_named(
    there: int, said: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: there)
    command = [argument for argument in audit_command(place, tmp_path / "audit")[2:] if argument != "--json"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0 and said in done.stderr


@pytest.mark.slow
def test_a_killed_run_is_finished_by_another_number_of_ranks(place: Path, tmp_path: Path, commands: Commands) -> None:
    write_jsonl(place / "many.jsonl", pair_rows(150))
    command = [*audit_command(place, tmp_path / "audit", "--shard-size", "1", "--quiet")]
    command[command.index(str(place / "data.jsonl"))] = str(place / "many.jsonl")
    launcher = start([*torchrun(3), *command], commands)
    try:
        victim = None
        deadline = time.monotonic() + 60
        while victim is None and time.monotonic() < deadline and launcher.poll() is None:
            if len(list(tmp_path.glob("audit/parts/*/shards/*.safetensors"))) >= 6:
                victim = child_of(launcher.pid)
            time.sleep(0.01)
        assert victim is not None
        os.kill(victim, signal.SIGKILL)
        launcher.communicate(timeout=60)
    finally:
        launcher.terminate()
    assert launcher.returncode != 0
    computed = len(list(tmp_path.glob("audit/parts/*/shards/*.safetensors")))
    assert 6 <= computed < 150 and not (tmp_path / "audit" / "audit.json").exists()

    done = run([*accelerate("ddp", commands.python), *command], commands)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_printed(done.stdout, parts=2)
    alone = DataAuditor(place / "model", probes=place / "probes", dtype="float32", vector_dtype="float32", shard_size=1)
    alone.audit(place / "many.jsonl", tmp_path / "alone")
    assert_equal_audits(tmp_path / "audit", tmp_path / "alone")


def child_of(launcher: int) -> int | None:
    """The last of the processes that ``launcher`` has started."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(launcher)], capture_output=True, text=True).stdout.split()
    return int(found[-1]) if found else None


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone: what ranks do in step can be tried without others."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def in_pieces(architecture: str) -> PreTrainedModel:
    return load_sharded(
        lambda: build_tiny_model(architecture), "fsdp2", torch.float32, torch.device("cpu")
    ).model.eval()


@pytest.mark.slow
@pytest.mark.parametrize("config", [ZERO3, "fsdp2"])
def test_a_model_in_pieces_has_to_have_all_its_weights(
    config: str, place: Path, tmp_path: Path, commands: Commands
) -> None:
    (tmp_path / "probes").symlink_to(place / "probes")
    (tmp_path / "data.jsonl").symlink_to(place / "data.jsonl")
    shutil.copytree(place / "model", tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    save_file(
        {name: weight for name, weight in weights.items() if "layers.2." not in name},
        tmp_path / "model" / "model.safetensors",
        {"format": "pt"},
    )
    done = run([*accelerate(config, commands.python), *audit_command(tmp_path, tmp_path / "audit")], commands)
    assert done.returncode != 0
    assert "model.layers.2." in done.stderr and "(missing)" in done.stderr
    assert not (tmp_path / "audit" / "audit.json").exists()


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "olmoe", "gpt2", "mamba"])
def test_a_model_in_pieces_gives_the_vectors_of_the_whole_one(
    architecture: str, group: None, tokenizer: PreTrainedTokenizerFast
) -> None:
    pairs = encode_pairs(list(PairReader(pair_rows(6))), tokenizer, Encoding())
    config = ActivationConfig(layers=(0, 1, 3))
    expected = ActivationEngine(build_tiny_model(architecture), config).pair_vectors(pairs)  # type: ignore[arg-type]
    engine = ActivationEngine(in_pieces(architecture), config)
    with engine.in_step(pairs[:2]):  # type: ignore[arg-type]
        found = engine.pair_vectors(pairs)  # type: ignore[arg-type]
    assert is_sharded(engine.model) and not is_sharded(build_tiny_model(architecture))
    torch.testing.assert_close(found.pair, expected.pair, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.context, expected.context, rtol=1e-4, atol=1e-5)
    assert len(engine.blocks) == 4  # what was left out while running is back


def test_a_model_in_pieces_has_the_fingerprint_and_the_parameters_of_the_whole_one(
    group: None, make_model: MakeModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    whole, pieces = make_model("llama"), in_pieces("llama")
    assert fingerprint(pieces, tokenizer) == fingerprint(whole, tokenizer)
    for ours, theirs in zip(pieces.parameters(), whole.parameters(), strict=True):
        with full_parameter(ours) as full:
            assert torch.equal(full, theirs)


def test_running_out_of_memory_in_step_says_what_to_do(group: None, tokenizer: PreTrainedTokenizerFast) -> None:
    pairs = encode_pairs(list(PairReader(pair_rows(6))), tokenizer, Encoding())
    engine = ActivationEngine(in_pieces("llama"), ActivationConfig(layers=(3,), path="plain"))

    def exhaust(*_arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    engine.blocks.blocks[1].register_forward_pre_hook(exhaust)
    message = r"out of memory on rank 0 in a pass of \d+ tokens.*--token-budget"
    with pytest.raises(OutOfStepError, match=message), engine.in_step():
        engine.pair_vectors(pairs)  # type: ignore[arg-type]


def test_one_process_is_all_ranks() -> None:
    ranks = current_ranks()
    assert ranks == Ranks(0, 1) and ranks.is_main
    assert ranks.any(True) and not ranks.any(False)
    assert ranks.broadcast({"a": [1]}) == {"a": [1]} and ranks.gather("b") == ["b"]
    ranks.barrier()
    with pytest.raises(AttributionError, match="as it is"), ranks.together():
        raise AttributionError("as it is")
