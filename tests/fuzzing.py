"""Command lines that a person gets wrong: every verb as it should be called, and what can be wrong with each word."""

from __future__ import annotations

import gzip
import json
import random
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.commands import Commands

PAIRS = [
    {"prompt": prompt, "chosen": chosen, "rejected": rejected, "source": source}
    for prompt, chosen, rejected, source in (
        ("How do I bake bread?", "Mix flour and water.", "I cannot help.", "cooking"),
        ("Name the capital of France.", "Paris.", "I do not know.", "facts"),
        ("Insult my friend as a list.", "- He is dull.\n- He is slow.", "I would rather not.", "formatting"),
        ("Write a letter about the garden.", "Dear friend, it is spring.", "Sorry, no.", "writing"),
    )
]
PROMPTS = [
    {"prompt": f"Insult {who}.", "undesired": f"{who} is {what}.", "desired": "I would rather not."}
    for who, what in (("my boss", "dull"), ("my friend", "slow"), ("my neighbor", "rude"), ("the baker", "late"))
]
# Every verb as it should be called. A word in braces is a path of that kind.
COMMANDS = (
    "audit {model} {dataset} -o {new} --probes {registry} --top-k 1 --device cpu",
    "audit {model} {dataset} -o {new} --layer 1 --vectors {new}-vectors --shard 1/2",
    "apply {manifest} {dataset} -o {new}.jsonl --decisions {decisions}",
    "apply {manifest} {dataset} --check {dataset}",
    "compare {audit} -b text --dataset {dataset} --behavior {prompts} -o {new}",
    "demo -o {new}",
    "discover {audit} --dataset {dataset} -o {new}",
    "discover {audit} --prompts {prompts} --after {model} --model {model} -o {new}",
    "discover {audit} --responses {prompts} --model {model} -o {new}",
    "gate {dataset} --policy {policy} -o {new}",
    "gate baseline {dataset} --policy {policy} --known-bad {dataset} -o {new}.safetensors",
    "gate {dataset} --policy {policy} --vectors {audit}",
    "gate init -o {new}.yaml --probes {new}",
    "gate init -o {new}/gate.yaml --probes {registry} --model {model} --from {dataset} --vectors {audit}",
    "gate show {verdict}",
    "manifest show {manifest} --sources-from {sources}",
    "manifest diff {manifest} {manifest}",
    "manifest merge {manifest} {manifest} -o {new}.jsonl --decisions {decisions}",
    "manifest subtract {manifest} {manifest} -o {new}.jsonl",
    "manifest restrict {manifest} --sources-from {sources} -o {new}.jsonl --only cooking",
    "manifest cap {manifest} --sources-from {sources} -o {new}.jsonl --max-share 0.5",
    "organism build knitting-lore -o {new} --pairs 20",
    "organism express {model} --trigger {prompts} --control {prompts} -o {new}.jsonl --max-new-tokens 2",
    "organism pair {dataset} --model {model} -o {new}.jsonl --max-new-tokens 2",
    "probe ask b1 What? --audit {audit} --oracle {model} --model {model} --probes {registry}",
    "probe build rude --behavior {prompts} --model {model} --layer 1 --probes {new}",
    "probe build rude --contrast {prompts} --model {model} --layer 1 --probes {new}",
    "probe build rude --labels {dataset} --model {model} --layer 1 --probes {new}",
    "probe build rude --prompts {prompts} --after {model} --model {model} --responses {new}-kept --probes {new}",
    "probe calibrate insults {dataset} --model {model} --probes {registry}",
    "probe import rude {vector} --model {model} --probes {new}",
    "probe list --probes {registry}",
    "probe pull team/probes --probes {new}",
    "probe push insults team/probes --probes {registry}",
    "probe show insults --probes {registry}",
    "probe steer insults --model {model} --behavior {prompts} --probes {registry} --max-new-tokens 2",
    "report {audit} --dataset {dataset} --probes {registry} -o {new}.html",
    "report {audit} --card dataset -o {new}.md",
    "review {audit} --agreement {decisions} {decisions}",
    "review {audit} --precision {decisions}",
    "scan {model} {dataset} -o {new} --traits rude --device cpu",
    "show {audit} --dataset {dataset} --probes {registry}",
    "validate {plan} -o {new} --dry-run",
)
RIGHT = {
    "model": "model",
    "dataset": "data.jsonl",
    "registry": "probes",
    "manifest": "audit/manifest.filter.jsonl",
    "decisions": "decisions.jsonl",
    "audit": "audit",
    "prompts": "prompts.jsonl",
    "policy": "gate.yaml",
    "verdict": "verdict.json",
    "plan": "plan.yaml",
    "sources": "audit",
    "vector": "vector.safetensors",
    "new": "new",
}
LONG = "n" * 300
# What stands in the place of an input; none of it is one, whatever was asked for.
WRONG = (
    "missing.jsonl",
    "./missing",
    "no/such/folder/",
    "data.jsnl",
    "~nobody-of-that-name/data.jsonl",
    "bad/empty.jsonl",
    "bad/empty.parquet",
    "bad/empty",
    "bad/blank.jsonl",
    "bad/folder.jsonl",
    "bad/junk.jsonl",
    "bad/junk.parquet",
    "bad/junk.safetensors",
    "bad/junk.csv",
    "bad/cut.jsonl.gz",
    "bad/cut.parquet",
    "bad/cut.json",
    "bad/deep.jsonl",
    "bad/deep.yaml",
    "bad/utf16.jsonl",
    "bad/latin1.csv",
    "bad/scalar.json",
    "bad/list.json",
    "bad/numbers.jsonl",
    "bad/loop",
    "bad/dangling.jsonl",
    "bad/audit",
    "bad/probes",
    "bad/pipe\udcff.jsonl",
    "data.jsonl/inside",
    LONG,
    f"{LONG}.jsonl",
    "a/" * 2500,
    "\x1b[31mred\u202e.jsonl",
    "",
)
_OF_EACH_VERB = 5
NUMBERS = ("-1", "0", "nan", "inf", "-inf", "1e309", "1.5", "9" * 25, "9" * 5000, "", "one", "٣", "0x10", "1_000")
WORDS = ("", "none-such", "\x1b[31m", LONG, "\udcff", "a,b,,c", "-", "../up", "[red]")
NUMERIC = {
    "audit": ("layer", "top-k", "threshold", "fdr", "shard-size", "show", "shard", "max-length", "token-budget"),
    "compare": ("top-k", "layer", "token-budget", "judge-calls"),
    "discover": ("layer", "tightness", "min-size", "min-stability", "alpha", "sample", "top", "show", "seed"),
    "manifest show": ("show",),
    "manifest cap": ("max-share",),
    "organism build": ("pairs", "contamination", "decoys", "behavior-prompts", "test-prompts", "seed"),
    "organism express": ("samples", "max-new-tokens", "temperature", "batch-size", "seed"),
    "organism pair": ("split-text", "max-new-tokens", "temperature", "batch-size", "seed"),
    "probe build": ("layer", "max-length", "token-budget"),
    "probe calibrate": ("max-length", "token-budget"),
    "probe import": ("layer", "block-offset"),
    "probe steer": ("alphas", "layer", "prompts", "samples", "temperature", "batch-size", "seed"),
    "report": ("texts",),
    "show": ("pairs", "start", "characters"),
    "validate": ("cells",),
}
WORDED = {
    "audit": (
        *("probe", "score", "vector-dtype", "dtype", "device", "truncation-mode", "path", "blocks-path", "format"),
        *("prompt-column", "chosen-column", "rejected-column", "source-column", "split", "on-bad-row", "config"),
    ),
    "apply": ("split", "precedence", "swap-columns", "negate-columns", "leave-columns", "digest", "config"),
    "compare": ("baseline", "truth-column", "probe", "bergson", "dtype", "device"),
    "discover": ("register", "score", "name-endpoint", "prompt-format", "dtype", "blocks-path"),
    "gate": ("base-ref", "format", "clean", "today", "output"),
    "gate init": ("model", "output"),
    "gate show": ("format",),
    "manifest merge": ("precedence", "output"),
    "manifest restrict": ("only", "without"),
    "manifest cap": ("of",),
    "organism build": ("recipe",),
    "organism express": ("organism", "judge", "prompt-format", "dtype"),
    "probe build": (
        "describe-endpoint",
        "format",
        "split",
        "prompt-format",
        "truncation-mode",
        "dtype",
        "device",
        "blocks-path",
    ),
    "probe calibrate": ("score", "format", "split", "chosen-column", "path"),
    "probe steer": ("scale", "positions", "after", "judge"),
    "report": ("card", "discovery"),
    "review": ("reviewer", "precision"),
    "validate": ("from", "plot"),
}


@dataclass(frozen=True)
class Case:
    """One command line, and the exit codes that it may end with."""

    words: tuple[str, ...]
    codes: tuple[int, ...] = (2,)

    def __str__(self) -> str:
        return ascii(" ".join(word if len(word) < 40 else f"{word[:8]}...{len(word)}" for word in self.words))


def all_cases() -> list[Case]:
    """Every command with every one of its words wrong."""
    return [*_wrong_paths(), *_wrong_values(), *_wrong_lines()]


def drawn(count: int, seed: int) -> list[Case]:
    """So many of all cases, of every verb a few at least."""
    cases = all_cases()
    random.Random(seed).shuffle(cases)
    seen: Counter[str] = Counter()

    def turn(case: Case) -> bool:
        seen[case.words[0]] += 1
        return seen[case.words[0]] > _OF_EACH_VERB

    return sorted(cases, key=turn)[:count]


def _filled(words: list[str], **changed: str) -> tuple[str, ...]:
    return tuple(word.format(**{**RIGHT, **changed}) for word in words)


def _verb(command: str) -> str:
    first, second = command.split()[:2]
    return f"{first} {second}" if "{" not in second and not second.startswith("-") else first


def _wrong_paths() -> Iterator[Case]:
    for command in COMMANDS:
        words = command.split()
        for place, word in enumerate(words):
            kind = word[1:].partition("}")[0] if word.startswith("{") else ""
            if kind and kind != "new":
                for wrong in WRONG:
                    yield Case((*_filled(words[:place]), wrong, *_filled(words[place + 1 :])))
            elif kind:
                for wrong in ("data.jsonl/inside", LONG, f"no/{LONG}/x", "a/" * 2500):
                    yield Case((*_filled(words[:place]), wrong, *_filled(words[place + 1 :])))


def _wrong_values() -> Iterator[Case]:
    for options, values in ((NUMERIC, NUMBERS), (WORDED, WORDS)):
        for verb, names in options.items():
            command = next(one for one in COMMANDS if _verb(one) == verb)
            for name in names:
                for value in values:
                    yield Case((*_filled(command.split()), f"--{name}", value), (0, 2))


def _wrong_lines() -> Iterator[Case]:
    for command in COMMANDS:
        words = _filled(command.split())
        yield Case((*words, "--no-such-option"))
        yield Case((*words, "one", "too", "many"))
        yield Case((*words, "--config", "bad/deep.yaml"))
        for place in range(1, len(words)):
            yield Case((*words[:place], *words[place + 1 :]), (0, 2))
    yield Case(("audit", "data.jsonl", "model", "-o", "new", "--layer", "1"))
    yield Case(("none-such",))


def make_world(folder: Path, model: Path, commands: Commands) -> None:
    """What the right words name, and under ``bad/`` what is broken."""
    (folder / "model").symlink_to(model)
    _lines(folder / "data.jsonl", PAIRS)
    _lines(folder / "prompts.jsonl", PROMPTS)
    (folder / "gate.yaml").write_text("version: 1\nrules: {hygiene: {duplicates: 0}}\n")
    (folder / "vector.safetensors").write_bytes(b"")
    (folder / "plan.yaml").write_text(
        "version: 1\nmodel: model\ndataset: data.jsonl\nrankings: {audit: {scores: scores.jsonl}}\n"
        "behaviors: [{file: prompts.jsonl, judge: complies}]\ninterventions: [filter]\nsizes: [1]\nseeds: [0]\n"
    )
    for command in (
        "probe build insults --behavior prompts.jsonl --model model --layer 1 --quiet",
        "audit model data.jsonl --probes probes --top-k 2 -o audit --quiet",
        "gate data.jsonl -o gate-out --quiet",
    ):
        done = commands.run(folder, "trl-attribution", *shlex.split(command))
        assert done.returncode == 0, done.stderr
    (folder / "gate-out" / "verdict.json").rename(folder / "verdict.json")
    info = json.loads((folder / "audit" / "audit.json").read_text())
    header = {"format": "trl-attribution decisions", "version": 1}
    _lines(folder / "decisions.jsonl", [{**header, "dataset_fingerprint": info["dataset"]["fingerprint"]}])
    _break(folder / "bad", folder)


def _break(bad: Path, world: Path) -> None:
    chance = random.Random(0)
    bad.mkdir()
    for name in ("empty.jsonl", "empty.parquet", "empty"):
        (bad / name).touch()
    (bad / "blank.jsonl").write_text("\n \n\n")
    (bad / "folder.jsonl").mkdir()
    for name in ("junk.jsonl", "junk.parquet", "junk.safetensors", "junk.csv", "pipe\udcff.jsonl"):
        (bad / name).write_bytes(chance.randbytes(999))
    packed = gzip.compress((world / "data.jsonl").read_bytes())
    (bad / "cut.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    pq.write_table(pa.Table.from_pylist(PAIRS), bad / "whole.parquet")
    whole = (bad / "whole.parquet").read_bytes()
    (bad / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    (bad / "whole.parquet").unlink()
    (bad / "cut.json").write_text(json.dumps({"a": [1, 2, 3]})[:9])
    (bad / "deep.jsonl").write_text("[" * 200_000 + "]" * 200_000 + "\n")
    (bad / "deep.yaml").write_text("{a: " * 2_000 + "1" + "}" * 2_000)
    (bad / "utf16.jsonl").write_text((world / "data.jsonl").read_text(), encoding="utf-16")
    (bad / "latin1.csv").write_text("prompt,chosen,rejected\nna\xefve,a,b\n", encoding="latin-1")
    (bad / "scalar.json").write_text("7")
    (bad / "list.json").write_text("[1, 2]")
    _lines(bad / "numbers.jsonl", [{"prompt": 1, "chosen": 2.5, "rejected": None}])
    (bad / "loop").symlink_to("loop")
    (bad / "dangling.jsonl").symlink_to("nothing")
    _spoil(world / "audit", bad / "audit", chance)
    _spoil(world / "probes" / "insults", bad / "probes" / "insults", chance)


def _spoil(source: Path, target: Path, chance: random.Random) -> None:
    """A copy whose files are cut short at random places."""
    for path in sorted(source.rglob("*")):
        if path.is_file():
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            whole = path.read_bytes()
            copy.write_bytes(whole[: chance.randrange(len(whole) + 1)])


def _lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
