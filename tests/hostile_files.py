"""Files from strangers: good ones of every format, broken at random, and what opens them.

``python -m tests.hostile_files 10000`` tries so many of each and prints a table: what opens a file either takes it or
refuses it with one of the package's errors, in a few processor-seconds.
"""

from __future__ import annotations

import hashlib
import json
import random
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file

from tests.audit_cases import auditor_of, pair_rows, tiny_loaded, tiny_probe
from tests.gate_cases import Place, axis_probe, rows, write_rows
from trl_attribution.errors import AttributionError

SECONDS = 10
# Written where a value stood; those that Python cannot write are written as they are.
RAW = (
    *("NaN", "Infinity", "-Infinity", "1e999", "-0.0", "1" * 5000, "-1", "0", "9223372036854775808", "1e-400"),
    *("null", "true", "[]", "{}", "[[]]", '""', '"\\ud800"', '"\\u0000"', '"\\u001b[31m"', '"../../etc/passwd"'),
    *('"' + "a" * 100_000 + '"', "[" * 100_000 + "]" * 100_000, '{"a":' * 5_000 + "1" + "}" * 5_000, '"__class__"'),
    *('{"$ref": "#"}', '"!!python/object:os.system"', "[1, 2, 3]", '{"role": 1}', "1.5", "65536", "1000000000000"),
)


@dataclass(frozen=True)
class Format:
    """A file of one kind in a folder with what it needs, and what opens it."""

    name: str
    file: str
    open: Callable[[Path], object]


def make_folder(folder: Path) -> tuple[Format, ...]:
    """Good files of every format under ``folder``."""
    from trl_attribution.behaviors import read_behavior
    from trl_attribution.evidence.validation import load_plan
    from trl_attribution.gate.verdict import Verdict
    from trl_attribution.manifest import Manifest
    from trl_attribution.manifest.decisions import ReviewDecisions
    from trl_attribution.probes.foreign import read_foreign

    _make_files(folder)
    (shard,) = (folder / "audit" / "vectors" / "shards").glob("*")
    return (
        Format("vector store, shard", str(shard.relative_to(folder)), lambda path: _store(path.parents[1])),
        Format("vector store, settings", "audit/vectors/store.json", lambda path: _store(path.parent)),
        Format("probe, vectors", "probes/insults/probe.safetensors", _probe),
        Format("probe, description", "probes/insults/probe.json", _probe),
        Format("vector of another tool", "foreign.safetensors", read_foreign),
        Format("manifest", "audit/manifest.filter.jsonl", Manifest.load),
        Format("decisions", "decisions.jsonl", ReviewDecisions.load),
        Format("policy", "gate.yaml", _policy),
        Format("plan", "plan.yaml", load_plan),
        Format("oracle", "oracle.json", _oracle),
        Format("behavior", "behavior.jsonl", read_behavior),
        Format("verdict", "verdict.json", Verdict.load),
        Format("audit", "audit/audit.json", _audit),
        Format("scores", "audit/scores.parquet", _table),
        _kept_pass(folder),
        Format("dataset, JSON lines", "data.jsonl", _dataset),
        Format("dataset, messages", "chat.jsonl", _dataset),
    )


def _make_files(folder: Path) -> None:
    from trl_attribution.lenses import OracleConfig
    from trl_attribution.manifest.decisions import ReviewDecision, ReviewDecisions

    place = Place(folder)
    place.dataset(rows(40))
    place.probe(axis_probe())
    place.write_policy("{probes: {insults: {max_flagged_count: 0}}, hygiene: {duplicates: 0}}")
    (folder / "verdict.json").write_text(json.dumps(place.run().verdict.to_json()))
    loaded = tiny_loaded()
    chat = write_rows(folder / "chat.jsonl", pair_rows(6))
    audit = auditor_of(loaded, [tiny_probe(loaded)]).audit(chat, folder / "audit")
    audit.flag(top_k=2).save_manifests()
    ReviewDecisions("a" * 64, (ReviewDecision("b" * 32, "keep", "a note", "ada"),)).save(folder / "decisions.jsonl")
    write_rows(folder / "behavior.jsonl", [{"prompt": "Hi.", "undesired": ["You fool."], "desired": "Hello."}] * 3)
    save_file({"layer_3": torch.ones(8), "layer_5": torch.ones(8)}, folder / "foreign.safetensors")
    OracleConfig(layer=1, reads=(2,), model=loaded.fingerprint.to_json()).write(folder / "oracle.json")
    plan = Path(__file__).parents[1] / "examples" / "validation" / "tiny.yaml"
    (folder / "plan.yaml").write_text(plan.read_text())


def _store(path: Path) -> None:
    from trl_attribution.store import VectorStore

    found = VectorStore.open(path)
    found.layer(found.layers[0])
    found.context(found.layers[0])
    found.verify()


def _probe(path: Path) -> None:
    from trl_attribution.probes import ProbeRegistry

    ProbeRegistry(path.parents[1]).load("insults")


def _policy(path: Path) -> None:
    from trl_attribution.gate.policy.file import load_policy
    from trl_attribution.gate.policy.probes import load_policy_probes

    load_policy_probes(load_policy(path))


def _oracle(path: Path) -> None:
    from trl_attribution.lenses import read_oracle_config

    read_oracle_config(path.parent)


def _audit(path: Path) -> None:
    from trl_attribution.audit.saved import SavedAudit

    SavedAudit.open(path.parent)


def _table(path: Path) -> None:
    from trl_attribution.scoring import ScoreTable

    found = ScoreTable.open(path)
    for column in found.columns:
        found.read(column)


def _dataset(path: Path) -> None:
    from trl_attribution.pairs import PairReader
    from trl_attribution.pairs.dataset_pass import survey

    survey(PairReader(path))


def _kept_pass(folder: Path) -> Format:
    """Of a kept pass what its digest covers, signed again when it is broken, as a stranger would."""
    from trl_attribution.pairs.kept_pass import kept_pass

    content = (folder / "audit" / "dataset.pass").read_bytes()[32:]
    (folder / "unsigned.pass").write_bytes(content)
    key = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["key"]

    def signed(path: Path) -> None:
        unsigned = path.read_bytes()
        kept = path.parent / "audit" / "dataset.pass"
        kept.write_bytes(hashlib.sha256(unsigned[8:]).digest() + unsigned)
        if kept_pass(kept.parent, key) is None:
            raise AttributionError("no such pass")

    return Format("kept pass", "unsigned.pass", signed)


def broken(content: bytes, chance: random.Random) -> bytes:
    """``content`` with something wrong in it: bytes, a length, or a value."""
    if chance.random() < 0.3:
        return _bytes_broken(content, chance)
    header = int.from_bytes(content[:8], "little")
    if 0 < header < len(content) and content[8:9] == b"{":  # safetensors
        text = _value_broken(content[8 : 8 + header].decode(), chance)
        size = len(text) if chance.random() < 0.8 else chance.choice((0, 1, 2**40, 2**63, len(text) + 7))
        return size.to_bytes(8, "little") + text + content[8 + header :]
    lines = content.split(b"\n")
    place = chance.randrange(len(lines))
    try:
        if content.lstrip()[:1] in b"{[":
            whole = chance.random() < 0.5 or len(lines) < 3
            text = content if whole else lines[place]
            changed = _value_broken(text.decode(), chance)
            return changed if whole else b"\n".join([*lines[:place], changed, *lines[place + 1 :]])
        return _value_broken(json.dumps(yaml.safe_load(content)), chance)
    except (ValueError, yaml.YAMLError):
        return _bytes_broken(content, chance)


def _bytes_broken(content: bytes, chance: random.Random) -> bytes:
    data = bytearray(content)
    kind = chance.randrange(4)
    start = chance.randrange(len(data) + 1)
    if kind == 0:
        for _ in range(chance.randint(1, 8)):
            data[chance.randrange(len(data))] = chance.randrange(256)
    elif kind == 1:
        del data[start:]
    elif kind == 2:
        data[start:start] = chance.randbytes(chance.randint(1, 40))
    else:
        data[start:start] = data[start : start + chance.randint(1, 400)]
    return bytes(data)


def _value_broken(text: str, chance: random.Random) -> bytes:
    """JSON with one value (or one key) replaced by something nobody expects."""
    document = json.loads(text)
    places = list(_places(document))
    marker = "@hostile@"
    if not places:
        return chance.choice(RAW).encode()
    parent, key = chance.choice(places)
    if isinstance(parent, dict) and chance.random() < 0.15:
        parent[chance.choice(("", "format", "x" * 3000, "\x1b", "__proto__"))] = parent.pop(key)
        return json.dumps(document).encode()
    if chance.random() < 0.1:
        parent.pop(key)
        return json.dumps(document).encode()
    parent[key] = marker
    return json.dumps(document).replace(f'"{marker}"', chance.choice(RAW)).encode()


def _places(value: Any) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in items:
        yield value, key
        yield from _places(one)


def outcome(one: Format, folder: Path, content: bytes) -> str:
    """``taken``, ``refused``, or what went wrong: the error's name and where it was raised."""
    path = folder / one.file
    path.write_bytes(content)
    signal.signal(signal.SIGPROF, _too_long)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        one.open(path)
    except AttributionError as error:
        message = str(error)
        return "refused" if message.isprintable() or "\x1b" not in message else "control characters in the message"
    except BaseException as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}: {str(error)[:80]}"
    else:
        return "taken"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _too_long(_signal: int, _frame: Any) -> None:
    raise TimeoutError(f"more than {SECONDS} processor-seconds")


def main(count: int, seed: int = 0) -> int:
    """The exit status: 1 where something was neither taken nor refused."""
    faults: Counter[str] = Counter()
    print("| file | tried | refused | taken | anything else |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for one in make_folder(folder):
            good = (folder / one.file).read_bytes()
            assert outcome(one, folder, good) == "taken", outcome(one, folder, good)
            chance = random.Random(f"{seed} {one.name}")
            found = Counter(outcome(one, folder, broken(good, chance)) for _ in range(count))
            (folder / one.file).write_bytes(good)
            other = {name: times for name, times in found.items() if name not in ("taken", "refused")}
            faults.update({f"{one.name}: {name}": times for name, times in other.items()})
            print(
                f"| {one.name} | {count:,} | {found['refused']:,} | {found['taken']:,} | {sum(other.values()):,} |",
                flush=True,
            )
    for name, times in faults.most_common():
        print(f"{times:6d}  {name!a}")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0))
