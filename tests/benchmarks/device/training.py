"""Training on the device: what the callback costs a DPO run, and vectors of a model in pieces."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.benchmarks.device.fields import Field, NotHereError
from tests.benchmarks.device.shapes import Sizes
from tests.tiny import build_tiny_tokenizer

_WORDS = ("letter", "friend", "garden", "spring", "water", "salt", "yeast", "bread", "list", "mild", "weather")


@dataclass
class Training:
    """The measurements of one run."""

    sizes: Sizes

    def fields(self) -> Iterator[Field]:
        """In the order of their worth."""
        yield Field("training", "callback on DPO, olmo2-1b", self.callback, 90)
        yield Field("ZeRO-3", "one device, olmo2-1b", self.zero3, 60)

    def callback(self) -> dict[str, Any]:
        """Seconds a step with and without it, runs of both kinds in turn on the same batches."""
        _need("trl", "datasets")
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            model = saved(self.sizes, folder / "model")
            steps: dict[bool, list[list[float]]] = {False: [], True: []}
            for number in range(self.sizes.pick(2, 1)):
                for with_callback in (False, True) if number % 2 else (True, False):
                    run = self._run(model, folder / f"{number}-{with_callback}", with_callback=with_callback)
                    steps[with_callback].append(run[1:])  # the first step warms up
        pairs = [pair for one in zip(steps[True], steps[False], strict=True) for pair in zip(*one, strict=True)]
        return {
            "seconds a step without": statistics.median(step for run in steps[False] for step in run),
            "seconds a step with": statistics.median(step for run in steps[True] for step in run),
            "with / without, median over steps": statistics.median(mine / theirs for mine, theirs in pairs),
            "steps": len(pairs),
        }

    def _run(self, model: Path, folder: Path, *, with_callback: bool) -> list[float]:
        from datasets import Dataset
        from trl import DPOConfig, DPOTrainer

        from tests.benchmarks.in_run_child import StepTimer
        from trl_attribution.callbacks import AttributionCallback

        batch, steps, words = self.sizes.pick((8, 12, 150), (2, 4, 12))
        timer, on_cpu = StepTimer(), self.sizes.device == "cpu"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = DPOTrainer(
                str(model),
                args=DPOConfig(
                    output_dir=str(folder / "out"),
                    per_device_train_batch_size=batch,
                    max_steps=steps,
                    learning_rate=1e-6,
                    bf16=not on_cpu,
                    use_cpu=on_cpu,
                    model_init_kwargs={"dtype": self.sizes.pick("bfloat16", "float32")},
                    save_strategy="no",
                    report_to=[],
                    disable_tqdm=True,
                    logging_steps=steps,
                ),
                train_dataset=Dataset.from_list(rows(batch * steps, words)),
                callbacks=[timer],
            )
            if with_callback:
                layer = self.sizes.layer("olmo2-1b")
                callback = AttributionCallback(trainer, layers=[layer], drift_pairs=0, output_dir=folder / "audit")
                trainer.add_callback(callback)
            trainer.train()
        return timer.seconds

    def zero3(self) -> dict[str, Any]:
        """Vectors of the model in pieces against those of the whole, in a process of its own."""
        _need("deepspeed")
        with tempfile.TemporaryDirectory() as scratch, socket.socket() as free:
            model = saved(self.sizes, Path(scratch) / "model")
            free.bind(("127.0.0.1", 0))
            environment = {
                **os.environ,
                "RANK": "0",
                "LOCAL_RANK": "0",
                "WORLD_SIZE": "1",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(free.getsockname()[1]),
                "ACCELERATE_USE_DEEPSPEED": "true",
                "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
                **({"ACCELERATE_USE_CPU": "true"} if self.sizes.device == "cpu" else {}),
            }
            free.close()
            asked = [str(model), str(self.sizes.layer("olmo2-1b")), self.sizes.device]
            command = [sys.executable, "-m", "tests.benchmarks.device.zero3_child", *asked]
            output, errors, status = _finished(command, environment, seconds=240)
        if status:
            raise RuntimeError(errors.strip()[-500:])
        found: dict[str, Any] = json.loads(output.splitlines()[-1])
        return found


def _finished(command: list[str], environment: dict[str, str], seconds: float) -> tuple[str, str, int]:
    """What a process says and its exit status; one that takes too long is interrupted.

    Killed, it would leave the lock on what DeepSpeed compiles behind, for which all others wait.
    """
    child = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    try:
        return *child.communicate(timeout=seconds), child.returncode
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGINT)
        child.communicate()
        raise


def saved(sizes: Sizes, folder: Path) -> Path:
    """A folder with the 1B model and a tokenizer."""
    sizes.model("olmo2-1b", sizes.pick("bfloat16", "float32")).save_pretrained(folder)
    build_tiny_tokenizer().save_pretrained(folder)
    return folder


def rows(count: int, words: int) -> list[dict[str, str]]:
    """Preference pairs of random words."""
    dice = random.Random(0)

    def text(length: int) -> str:
        return " " + " ".join(dice.choices(_WORDS, k=length))

    return [{"prompt": text(words), "chosen": text(words // 3), "rejected": text(words // 3 + 1)} for _ in range(count)]


def _need(*packages: str) -> None:
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise NotHereError(f"{' and '.join(missing)} not installed")
