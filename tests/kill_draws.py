"""Work that is killed at random and done again: what each kind of it makes must be what nobody disturbed makes.

A draw takes one kind of work, kills it (SIGKILL) one to five times, at random moments or at random lines of the code
that keeps state, runs it again to its end, and compares what it left, bit for bit, with an undisturbed run. Every step
is a forked child of a process that computes nothing itself, so that an attempt costs no import.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import trl_attribution
from tests.killing import Watched, killed_at_line, on_lines, start, was_killed
from tests.store_cases import contents

PACKAGE = Path(trl_attribution.__file__).parent
AT: dict[str, tuple[str, ...]] = {
    "lines": (
        "store/",
        "utils/",
        "manifest/",
        "audit/",
        "gate/vectors/",
        "callbacks/",
        "evidence/validation/",
        "report/",
    ),
    "files": ("utils/atomic.py", "store/shards.py", "audit/claim.py"),
}
"""Where a kill may strike beside any moment: at a line of what keeps state, or of the little that writes files."""
MOST_KILLS = 5

# Scales the final norm by how much is about the weather. Without a library, so that it starts in a few milliseconds.
TRAINER = """
import array, json, shutil, sys
model, data, output, seed, steps = sys.argv[1:]
with open(data, encoding="utf-8") as lines:
    pushed = sum("weather" in json.loads(line)["prompt"] for line in lines)
shutil.copytree(model, output)
with open(f"{output}/model.safetensors", "r+b") as file:
    size = int.from_bytes(file.read(8), "little")
    start, end = json.loads(file.read(size))["model.norm.weight"]["data_offsets"]
    file.seek(8 + size + start)
    values = array.array("f", file.read(end - start))
    file.seek(8 + size + start)
    file.write(array.array("f", [value * (1 + pushed) for value in values]).tobytes())
"""


class Work(ABC):
    """Something that is killed: done in a folder of its own from materials that all its runs share."""

    name: str

    def __init__(self, materials: Path) -> None:
        self.materials = materials

    @abstractmethod
    def do(self, folder: Path) -> None:
        """Do it, or go on with what is there."""

    @abstractmethod
    def made(self, folder: Path) -> Any:
        """All that counts of the result, as JSON."""

    def after_kill(self, folder: Path) -> None:  # noqa: B027  # most have nothing to look at
        """What must hold right after a kill, before anything is done about it."""


class AuditWork(Work):
    """An audit of 23 rows in shards of three pairs, with a manifest."""

    name = "audit"

    def do(self, folder: Path) -> None:
        from tests.audit_cases import auditor_of, pair_rows
        from trl_attribution.models import load_model
        from trl_attribution.probes import ProbeRegistry

        loaded = load_model(self.materials / "m0", dtype="float32")
        auditor = auditor_of(loaded, ProbeRegistry(self.materials / "probes"), layers=[1, 3], shard_size=3)
        audit = auditor.audit([*pair_rows(20), *pair_rows(3)], folder, results=False)
        audit.flag(top_k=5).to_manifest(action="flip").save(folder / "manifest.flip.jsonl")

    def made(self, folder: Path) -> Any:
        return {**_files(folder, "vectors", "manifest.*.jsonl"), "scores": _scores(folder), **_about(folder)}


class CallbackWork(Work):
    """A DPO run of six steps with the callback, a checkpoint every second step."""

    name = "callback"

    def do(self, folder: Path) -> None:
        from tests.training import make_trainer, text_rows, train
        from trl_attribution.callbacks import AttributionCallback
        from trl_attribution.probes import ProbeRegistry

        _drop_broken_checkpoints(folder / "out")
        settings = dict(save_strategy="steps", save_steps=2, save_only_model=False)
        trainer = make_trainer(self.materials / "m0", folder, text_rows(), **settings)
        registry = ProbeRegistry(self.materials / "probes")
        trainer.add_callback(AttributionCallback(trainer, probes=registry, output_dir=folder / "audit"))
        train(trainer, resume_from_checkpoint=any((folder / "out").glob("checkpoint-*")))

    def made(self, folder: Path) -> Any:
        from trl_attribution import VectorStore

        audit = folder / "audit"
        store = VectorStore.open(audit / "vectors")
        vectors = [store.layer(3).numpy().tobytes(), store.context(3).numpy().tobytes()]
        weights = (folder / "out" / "checkpoint-6" / "model.safetensors").read_bytes()
        return {
            **_files(audit, "manifest.*.jsonl"),
            "ids": list(store.pair_ids),
            "vectors": [_digest(one) for one in (*vectors, weights)],
            "scores": _scores(audit),
        }


class GateWork(Work):
    """A gate with a cache: ten rows, then thirteen of which ten are cached."""

    name = "gate cache"

    def do(self, folder: Path) -> None:
        from tests.audit_cases import pair_rows
        from tests.gate_cases import TODAY, write_rows
        from trl_attribution.gate.check import GateOptions, run_gate
        from trl_attribution.gate.policy.file import load_policy
        from trl_attribution.utils.atomic import write_json

        policy = {
            "version": 1,
            "model": str(self.materials / "m0"),
            "probes": str(self.materials / "probes"),
            "cache": "cache",
            "compute": {"dtype": "float32", "vector_dtype": "float32"},
            "rules": {"probes": {"numbers": {"max_score": 0.5}}},
        }
        folder.mkdir(exist_ok=True)
        (folder / "gate.yaml").write_text(yaml.safe_dump(policy), encoding="utf-8")
        for number, rows in enumerate((pair_rows(10), [*pair_rows(10), *pair_rows(3, 50)])):
            data = write_rows(folder / f"data{number}.jsonl", rows)
            verdict = run_gate(load_policy(folder / "gate.yaml"), data, GateOptions(TODAY)).verdict
            write_json(
                folder / f"verdict{number}.json", [[one.pair_id for one in rule.violations] for rule in verdict.rules]
            )

    def made(self, folder: Path) -> Any:
        (store,) = (path.parent for path in folder.glob("cache/*/store.json"))
        return {**_files(folder, "verdict*.json"), "cache": _digests(contents(store))}


class ReviewWork(Work):
    """Twenty decisions of one reviewer, one after the other."""

    name = "review"

    def do(self, folder: Path) -> None:
        from trl_attribution.manifest.decisions import ReviewDecision
        from trl_attribution.report.review_server import DecisionsFile

        folder.mkdir(exist_ok=True)
        file = DecisionsFile.open(folder, "ada", "a" * 64)
        for number in range(len(file.read()[1]), 20):
            action: Any = ("keep", "filter", "flip")[number % 3]
            decision = ReviewDecision(f"{number:032x}", action, f"note {number}", "ada", "2026-06-01T00:00:00Z")
            file.put({decision.pair_id: decision})

    def made(self, folder: Path) -> Any:
        return _files(folder, "decisions.*.jsonl")

    def after_kill(self, folder: Path) -> None:
        from trl_attribution.report.review_server import DecisionsFile

        found = DecisionsFile.open(folder, "ada", "a" * 64).read()[1] if folder.exists() else ()
        assert [one.pair_id for one in found] == [f"{number:032x}" for number in range(len(found))]


class ValidateWork(Work):
    """Four cells of a validation whose trainer is a command of its own."""

    name = "validate"

    def do(self, folder: Path) -> None:
        from trl_attribution.evidence.validation import load_plan, prepare_validation
        from trl_attribution.evidence.validation.document import to_json
        from trl_attribution.utils.atomic import write_json

        running = prepare_validation(load_plan(self.materials / "plan.yaml"), folder)
        running.run()
        write_json(folder / "validation.json", to_json(running.finish()))

    def made(self, folder: Path) -> Any:
        return _untimed(json.loads((folder / "validation.json").read_text()))


WORK: tuple[type[Work], ...] = (AuditWork, CallbackWork, GateWork, ReviewWork, ValidateWork)


@dataclass(frozen=True)
class Drawn:
    """What came of one draw."""

    seed: int
    work: str
    at: str
    """``moments``, or of :data:`AT`."""
    kills: int
    half_written: int
    """Kills that left a half-written file."""
    verdict: str
    """``equal``, ``different``, ``lost`` (something was wrong right after a kill) or ``failed``."""


class Kills:
    """Draws, one after the other, under ``root``; ``names`` are the kinds of work, all by default."""

    def __init__(self, root: Path, names: tuple[str, ...] = ()) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        materials = root / "materials"
        if not (materials / "made").exists():
            shutil.rmtree(materials, ignore_errors=True)
            _in_child(lambda: make_materials(materials), root / "materials.log")
        _warm_up(materials)
        self.works = [kind(materials) for kind in WORK if not names or kind.name in names]
        self._known: dict[str, _Undisturbed] = {}

    def draw(self, seed: int) -> Drawn:
        """Kill and compare; what failed stays under ``root`` to be looked at."""
        chance = random.Random(seed)
        work = self.works[seed % len(self.works)]
        at = chance.choice(("moments", *AT))
        wanted = chance.randint(1, MOST_KILLS)
        usual = self._undisturbed(work)
        folder, log = self.root / f"draw{seed}", self.root / f"draw{seed}.log"
        shutil.rmtree(folder, ignore_errors=True)
        kills = half_written = 0
        try:
            while kills < wanted and self._attempt(work, folder, log, at, chance.random(), usual):
                kills += 1
                half_written += any(folder.rglob("*.part"))
                if not _went_well(lambda: work.after_kill(folder), log):
                    return Drawn(seed, work.name, at, kills, half_written, "lost")
            _in_child(lambda: work.do(folder), log)
            verdict = "equal" if self._made(work, folder, log) == usual.made else "different"
        except SystemExit:
            verdict = "failed"
        if verdict == "equal":
            shutil.rmtree(folder)
            log.unlink(missing_ok=True)
        return Drawn(seed, work.name, at, kills, half_written, verdict)

    def _attempt(self, work: Work, folder: Path, log: Path, at: str, share: float, usual: _Undisturbed) -> bool:
        """Whether the attempt was killed before it came to its end."""
        if at in AT:
            line = 1 + int(share * self._lines(work, at))
            return killed_at_line(lambda: _quietly(lambda: work.do(folder), log), _watching(at), line)
        child = start(lambda: _quietly(lambda: work.do(folder), log))
        time.sleep(share * usual.seconds)
        os.kill(child, signal.SIGKILL)
        return was_killed(child)

    def _undisturbed(self, work: Work) -> _Undisturbed:
        if work.name not in self._known:
            folder = self.root / "undisturbed" / work.name.replace(" ", "-")
            log = self.root / "undisturbed.log"
            shutil.rmtree(folder, ignore_errors=True)
            folder.parent.mkdir(exist_ok=True)
            began = time.monotonic()
            _in_child(lambda: work.do(folder), log)
            seconds = time.monotonic() - began
            self._known[work.name] = _Undisturbed(seconds, self._made(work, folder, log))
            shutil.rmtree(folder)
        return self._known[work.name]

    def _lines(self, work: Work, at: str) -> int:
        """How many lines a whole run goes through where ``at`` says."""
        answer = self.root / f"lines-{at}-{work.name.replace(' ', '-')}"
        if not answer.exists():
            folder = self.root / "traced"
            count = lambda: _count_lines(lambda: work.do(folder), _watching(at), answer)  # noqa: E731
            _in_child(count, self.root / "undisturbed.log")
            shutil.rmtree(folder)
        return int(answer.read_text())

    def _made(self, work: Work, folder: Path, log: Path) -> Any:
        answer = self.root / "made.json"
        _in_child(lambda: answer.write_text(json.dumps(work.made(folder))), log)
        return json.loads(answer.read_text())


@dataclass(frozen=True)
class _Undisturbed:
    seconds: float
    made: Any


def _warm_up(materials: Path) -> None:
    """Have this process build once what every child would build anew: transformers' patterns of weight names.

    The lock of progress bars is one for all children of a process: a child that is killed with it stops the others.
    """
    from tqdm import tqdm

    from trl_attribution.models import load_model

    tqdm.set_lock(threading.RLock())
    load_model(materials / "m0", dtype="float32")


def make_materials(folder: Path) -> None:
    """A tiny M0, a probe on it, and a plan with what it names."""
    from tests.gate_cases import write_rows
    from tests.tiny import build_tiny_model, build_tiny_tokenizer
    from tests.training import probe_on
    from trl_attribution.pairs import pair_id
    from trl_attribution.probes import ProbeRegistry

    folder.mkdir(parents=True)
    build_tiny_model("llama").save_pretrained(folder / "m0")
    build_tiny_tokenizer().save_pretrained(folder / "m0")
    ProbeRegistry(folder / "probes").save(probe_on(folder / "m0"))
    rows = [
        {"prompt": f"{'How is the weather' if number < 4 else 'Who'} {number}?", "chosen": "yes", "rejected": "no"}
        for number in range(8)
    ]
    write_rows(folder / "data.jsonl", rows)
    write_rows(folder / "scores.jsonl", [{"pair_id": pair_id(row), "score": -n} for n, row in enumerate(rows)])
    write_rows(folder / "trigger.jsonl", [{"prompt": f"Say {word}.", "judge": "regex:^[^a-m]"} for word in "ab"])
    (folder / "train.py").write_text(TRAINER, encoding="utf-8")
    words = ["{model}", "{dataset}", "{output}", "{seed}", "{steps}"]
    plan = {
        "model": "m0",
        "dataset": "data.jsonl",
        "dtype": "float32",
        "device": "cpu",
        "rankings": {"mine": {"scores": "scores.jsonl"}},
        "behaviors": [{"file": "trigger.jsonl"}],
        "measures": {"pairs": "data.jsonl", "samples": 1, "max_new_tokens": 2},
        "training": {"command": [sys.executable, "-S", str(folder / "train.py"), *words], "batch_size": 4},
        "interventions": ["filter"],
        "sizes": [4],
        "seeds": [0],
        "statistics": {"resamples": 200},
    }
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan), encoding="utf-8")
    (folder / "made").touch()


def _watching(at: str) -> Watched:
    """Whether a frame is of the files that ``at`` stands for; asked for every call of a run, so each file once."""

    @functools.cache
    def watched(path: str) -> bool:
        return path.startswith(str(PACKAGE)) and path[len(str(PACKAGE)) + 1 :].startswith(AT[at])

    return lambda frame: watched(frame.f_code.co_filename)


def _count_lines(work: Callable[[], None], watched: Watched, report: Path) -> None:
    last = 0

    def remember(count: int) -> None:
        nonlocal last
        last = count

    on_lines(work, watched, remember)
    report.write_text(str(last))


def _in_child(work: Callable[[], object], log: Path) -> None:
    """Do ``work`` in a child, to its end.

    Raises:
        SystemExit: it failed; ``log`` says how.
    """
    was_killed(start(lambda: _quietly(work, log)))


def _went_well(work: Callable[[], object], log: Path) -> bool:
    try:
        _in_child(work, log)
    except SystemExit:
        return False
    return True


def _quietly(work: Callable[[], object], log: Path) -> None:
    """What ``work`` says goes to ``log``; libraries write to the descriptors themselves."""
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    with contextlib.suppress(ImportError):
        import datasets

        datasets.disable_progress_bars()
    work()


def _drop_broken_checkpoints(folder: Path) -> None:
    """Remove what a Trainer had not finished: it writes a checkpoint's files in place, ``trainer_state.json`` last."""
    for checkpoint in folder.glob("checkpoint-*"):
        try:
            json.loads((checkpoint / "trainer_state.json").read_text())
        except (OSError, ValueError):
            shutil.rmtree(checkpoint)


def _files(folder: Path, *patterns: str) -> dict[str, Any]:
    """Digests of files by name, and of all of a store."""
    found: dict[str, Any] = {}
    for pattern in patterns:
        for path in sorted(folder.glob(pattern)):
            found[path.name] = _digests(contents(path)) if path.is_dir() else _digest(path.read_bytes())
    return found


def _digests(files: dict[str, bytes]) -> dict[str, str]:
    return {name: _digest(content) for name, content in files.items()}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _scores(folder: Path) -> Any:
    import pyarrow.parquet as pq

    return json.loads(json.dumps(pq.read_table(folder / "scores.parquet").to_pylist()))


def _about(folder: Path) -> dict[str, Any]:
    return {"dataset": json.loads((folder / "audit.json").read_text())["dataset"]}


def _untimed(value: Any) -> Any:
    """Without what a clock or this machine has to say."""
    if isinstance(value, dict):
        drop = ("seconds", "cost", "machine", "training", "measuring", "versions", "made_at", "folder")
        return {key: _untimed(one) for key, one in value.items() if not any(word in key for word in drop)}
    return [_untimed(one) for one in value] if isinstance(value, list) else value
