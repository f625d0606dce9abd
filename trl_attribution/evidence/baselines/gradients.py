"""LESS-style gradient cosines on M0, computed by bergson in an environment of its own, called as a process."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl_attribution.behaviors import Examples
from trl_attribution.errors import ModelError, SettingsError
from trl_attribution.evidence.baselines.baseline import BaselineScores, Cost, PairSet
from trl_attribution.models.likelihood import forward_flops
from trl_attribution.pairs import EncodedResponse, Encoding
from trl_attribution.utils.atomic import atomic_path, write_json
from trl_attribution.utils.progress import OnProgress, silent
from trl_attribution.utils.text import printable

if TYPE_CHECKING:
    from trl_attribution.models import LoadedModel

CHILD = Path(__file__).with_name("bergson_child.py")
INSTALL = "see docs/how-to/compare-with-baselines.md for how to make one"


@dataclass(frozen=True)
class GradientConfig:
    """How bergson is called."""

    python: str
    """The interpreter of an environment that has bergson."""
    projection: int = 16
    """Each module's gradient is projected to a square of this side."""
    seed: int = 0
    """Of the projection."""
    chunk: int = 128
    """Pairs whose gradients lie on disk at once, and that a killed run loses at most."""
    token_budget: int = 2048
    """Tokens in one pass, padding included."""

    def __post_init__(self) -> None:
        for name in ("projection", "chunk", "token_budget"):
            if getattr(self, name) < 1:
                raise SettingsError(f"gradient baseline: {name} must be at least 1, not {getattr(self, name)}")


@dataclass(frozen=True)
class GradientCosine:
    """The cosine of a pair's DPO gradient at M0 with the behavior's, all modules, randomly projected.

    At M0 the gradient of the DPO loss points along ``grad log p(rejected) - grad log p(chosen)``, so a step on the
    pair goes along its negative; the behavior's direction is the mean over its prompts of the unit difference
    ``grad log p(undesired) - grad log p(desired)``. LESS proper also trains a LoRA warm-up and divides by Adam's
    moments; this does neither.
    """

    m0: Callable[[], LoadedModel] = field(repr=False)
    model_digest: str
    encoding: Encoding
    behavior: Examples
    config: GradientConfig
    work: Path | None = None
    """Where a killed run goes on; by default a temporary folder."""
    trust_remote_code: bool = False

    @property
    def name(self) -> str:
        """``gradient``."""
        return "gradient"

    @property
    def settings(self) -> Mapping[str, Any]:
        """M0, truncation, behavior and projection."""
        return {
            "baseline": "gradient",
            "model": self.model_digest,
            "encoding": asdict(self.encoding),
            "behavior": self.behavior.digest,
            "projection": self.config.projection,
            "seed": self.config.seed,
        }

    def __call__(self, pairs: PairSet, on_progress: OnProgress = silent) -> BaselineScores:
        """Write the tokens, call bergson, read the scores.

        Raises:
            ModelError: M0 cannot be loaded, or bergson fails; its last words are in the message.
            SettingsError: the interpreter has no bergson.
        """
        version = bergson_version(self.config.python)
        loaded = self.m0()
        with self._folder() as folder:
            tokens = self._write(folder, loaded, pairs)
            self._run(folder, on_progress, pairs.count)
            scores, seconds = _collected(folder, self.config.chunk)
        # A backward pass costs twice a forward one.
        cost = Cost(seconds, 3 * forward_flops(loaded.model, tokens))
        note = f"bergson {version}, projection {self.config.projection}; loading and the behavior's gradients not timed"
        return BaselineScores(self.name, scores, cost, (note,))

    @contextmanager
    def _folder(self) -> Iterator[Path]:
        if self.work is None:
            with tempfile.TemporaryDirectory(prefix="gradients-") as folder:
                yield Path(folder)
            return
        self.work.mkdir(parents=True, exist_ok=True)
        yield self.work
        shutil.rmtree(self.work)

    def _write(self, folder: Path, loaded: LoadedModel, pairs: PairSet) -> int:
        """``pairs.jsonl`` and ``spec.json``; the tokens of all pairs."""
        count = tokens = 0
        with atomic_path(folder / "pairs.jsonl") as part, part.open("w", encoding="ascii") as handle:
            for pair in pairs.encoded(loaded.tokenizer, self.encoding, self.name):
                sides = {"chosen": _ids(pair.chosen), "rejected": _ids(pair.rejected)}
                handle.write(json.dumps({"pair_id": pair.pair_id, **sides}) + "\n")
                tokens += sum(len(side["prompt"]) + len(side["response"]) for side in sides.values())
                count += 1
        spec = {
            "model": _model_folder(loaded, folder),
            "device": str(loaded.model.device),
            "trust_remote_code": self.trust_remote_code,
            "projection": self.config.projection,
            "seed": self.config.seed,
            "tokens": self.config.token_budget,
            "chunk": self.config.chunk,
            "chunks": -(-count // self.config.chunk),
            "pairs": count,
            "behavior": self._behavior(loaded),
        }
        write_json(folder / "spec.json", spec)
        return tokens

    def _behavior(self, loaded: LoadedModel) -> list[dict[str, Any]]:
        from trl_attribution.behaviors.encoding import encode_example

        encoded = [encode_example(one, loaded.tokenizer, self.encoding, "auto") for one in self.behavior.examples]
        return [
            {"undesired": [_ids(side) for side in one.undesired], "desired": [_ids(side) for side in one.desired]}
            for one in encoded
        ]

    def _run(self, folder: Path, on_progress: OnProgress, total: int) -> None:
        errors = folder / "errors.txt"
        with errors.open("w", encoding="utf-8") as stderr:
            # From a folder without modules: the child must find bergson's packages, not ours.
            process = subprocess.Popen(
                [self.config.python, str(CHILD), str(folder.resolve())],
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                cwd=folder,
            )
            try:
                assert process.stdout is not None  # it is a pipe
                for line in process.stdout:
                    if line.startswith('{"done"'):
                        on_progress(self.name, int(json.loads(line)["done"]), total)
                code = process.wait()
            finally:
                process.kill()
                process.wait()
        if code != 0:
            said = errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise ModelError(
                f"baseline gradient: bergson ended with code {code}: {printable(' '.join(said[-3:]), 500)}. "
                + ("Run the same command to go on from where it was." if self.work is not None else "")
            )


def bergson_version(python: str) -> str:
    """The version of bergson that ``python`` has.

    Raises:
        SettingsError: there is no such interpreter, or it has no bergson.
    """
    program = "from importlib.metadata import version; print(version('bergson'))"
    try:
        done = subprocess.run([python, "-c", program], check=False, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SettingsError(f"--bergson: {printable(python)} cannot be run ({error}); {INSTALL}") from error
    if done.returncode != 0:
        raise SettingsError(f"--bergson: {printable(python)} is a Python without bergson; {INSTALL}")
    return printable(done.stdout.strip(), 40)


def _ids(side: EncodedResponse) -> dict[str, list[int]]:
    return {"prompt": list(side.prompt_ids), "response": list(side.response_ids)}


def _model_folder(loaded: LoadedModel, folder: Path) -> str:
    """What the other environment can load M0 from."""
    name = str(loaded.model.config.name_or_path)
    if name and (Path(name) / "config.json").is_file():
        return str(Path(name).resolve())
    if name and not Path(name).exists() and name == loaded.name:
        return name  # a Hub id, in the cache by now
    target = folder / "model"
    loaded.model.save_pretrained(target)
    return str(target.resolve())


def _collected(folder: Path, chunk: int) -> tuple[dict[str, float], float]:
    scores: dict[str, float] = {}
    seconds = 0.0
    for path in sorted(folder.glob(f"scores-{chunk}-*.json")):
        found = json.loads(path.read_text(encoding="ascii"))
        scores.update((pair_id, float(score)) for pair_id, score in found["scores"])
        seconds += float(found["seconds"])
    return scores, seconds
