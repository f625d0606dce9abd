"""The registry: probes come back as they were saved, appear whole or not at all, and are never silently skipped."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.commands import Commands
from tests.probes.test_probes import M0, make_probe
from trl_attribution.errors import ProbeError
from trl_attribution.probes import Probe, ProbeRegistry, read_probe

TENSORS = ("vector", "prompt_vectors", "contexts", "reference_scores", "reference_center")
KNOWN = ("example_vectors", "example_prompts", "control_contexts", "control_vectors", "control_prompts")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_probe_comes_back_exactly_as_it_was_saved(tmp_path: Path) -> None:
    probe = make_probe()
    ProbeRegistry(tmp_path).save(probe)
    back = ProbeRegistry(tmp_path).load("insults")
    for name in TENSORS:
        assert torch.equal(getattr(back, name), getattr(probe, name)), name
    for name in ("name", "layers", "layer", "model", "built", "separability", "promoted_tokens", "fingerprint"):
        assert getattr(back, name) == getattr(probe, name), name


def test_a_probe_without_prompts_or_calibration_comes_back_without_them(tmp_path: Path) -> None:
    registry = ProbeRegistry(tmp_path)
    registry.save(Probe("bare", (3,), torch.ones(1, 4), 3, M0))
    back = registry.load("bare")
    assert back.prompt_vectors is None
    assert back.contexts is None
    assert back.reference_scores is None
    assert back.separability == {}


def test_what_is_on_disk_says_what_it_means(tmp_path: Path) -> None:
    folder = ProbeRegistry(tmp_path).save(make_probe())
    assert sorted(path.name for path in folder.iterdir()) == ["probe.json", "probe.safetensors"]
    description = json.loads((folder / "probe.json").read_text())
    assert description["format"] == "trl-attribution probe"
    assert description["version"] == 3
    assert description["sign"] == "towards"
    assert description["axes"]["vector"] == ["layer", "hidden"]
    assert description["layers"] == [1, 2, 3]
    assert description["layer"] == 2
    assert description["model"] == {"config": "c" * 8, "weights": "w" * 8, "chat_template": "t" * 8}
    assert description["separability"] == {"1": 0.5, "2": 0.75}


def with_known(probe: Probe) -> Probe:
    """The same with pairs of its own and two controls, of which one has responses."""
    generator = torch.Generator().manual_seed(7)
    assert probe.prompt_vectors is not None
    shape = probe.vector.shape
    return replace(
        probe,
        example_vectors=torch.randn(3, *shape, generator=generator),
        example_prompts=torch.tensor([0, 1, 1]),
        control_contexts=torch.randn(2, *shape, generator=generator),
        control_vectors=torch.randn(1, *shape, generator=generator),
        control_prompts=torch.tensor([1]),
    )


def test_own_pairs_and_controls_come_back(tmp_path: Path) -> None:
    probe = with_known(make_probe())
    ProbeRegistry(tmp_path).save(probe)
    back = ProbeRegistry(tmp_path).load("insults")
    for name in KNOWN:
        assert torch.equal(getattr(back, name), getattr(probe, name)), name
    assert back.fingerprint == probe.fingerprint
    assert back.fingerprint != make_probe().fingerprint
    assert back.knows_controls


@pytest.mark.parametrize(("version", "axes"), [(1, TENSORS[:4]), (2, (*TENSORS, *KNOWN))])
def test_a_probe_of_an_older_version_opens(version: int, axes: tuple[str, ...], tmp_path: Path) -> None:
    folder = ProbeRegistry(tmp_path).save(make_probe())
    description = json.loads((folder / "probe.json").read_text())
    description["version"] = version
    description["axes"] = {name: description["axes"][name] for name in axes}
    (folder / "probe.json").write_text(json.dumps(description))
    back = ProbeRegistry(tmp_path).load("insults")
    assert back.fingerprint == make_probe().fingerprint
    assert back.example_vectors is None
    assert not back.knows_controls


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"example_prompts": torch.tensor([0, 1, 99])}, "example_prompts must name one of"),
        ({"example_prompts": None}, "example_prompts must name one of"),
        ({"control_prompts": torch.tensor([2])}, "control_prompts must name one of 2 prompts"),
        ({"control_contexts": torch.zeros(2, 1, 1)}, "control_contexts has shape"),
        ({"prompt_vectors": None, "contexts": None, "example_vectors": None, "example_prompts": None}, "has controls"),
    ],
)
def test_pairs_and_controls_that_contradict_the_probe_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ProbeError, match=message):
        replace(with_known(make_probe()), **change)


def test_saving_the_same_probe_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    first = contents(ProbeRegistry(tmp_path / "a").save(make_probe()))
    assert contents(ProbeRegistry(tmp_path / "b").save(make_probe())) == first


def test_names_are_sorted_and_iterating_gives_every_probe(tmp_path: Path) -> None:
    registry = ProbeRegistry(tmp_path)
    for name in ("zeta", "alpha", "Beta.2_x-1"):
        registry.save(make_probe(name))
    assert registry.names() == ["Beta.2_x-1", "alpha", "zeta"]
    assert [probe.name for probe in registry] == registry.names()
    assert len(registry) == 3
    assert "alpha" in registry
    assert "gamma" not in registry


def test_load_all_keeps_the_order_asked_for(tmp_path: Path) -> None:
    registry = ProbeRegistry(tmp_path)
    for name in ("a", "b", "c"):
        registry.save(make_probe(name))
    assert [probe.name for probe in registry.load_all(["c", "a", "c"])] == ["c", "a"]
    assert [probe.name for probe in registry.load_all()] == ["a", "b", "c"]


def test_overwriting_has_to_be_asked_for_and_replaces_everything(tmp_path: Path) -> None:
    registry = ProbeRegistry(tmp_path)
    registry.save(make_probe())
    before = contents(tmp_path / "insults")
    with pytest.raises(ProbeError, match="already in .*--overwrite"):
        registry.save(make_probe(seed=1))
    assert contents(tmp_path / "insults") == before
    registry.save(replace(make_probe(seed=1), contexts=None), overwrite=True)
    back = registry.load("insults")
    assert back.contexts is None
    assert torch.equal(back.vector, make_probe(seed=1).vector)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["insults"]


def test_a_failed_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    registry = ProbeRegistry(tmp_path)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ProbeError, match="No space left on device"):
        registry.save(make_probe())
    assert registry.names() == []
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_a_failed_overwrite_leaves_the_old_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = ProbeRegistry(tmp_path)
    registry.save(make_probe())
    before = contents(tmp_path / "insults")
    really_replace = os.replace

    def second_fails(source: Path, target: Path) -> None:
        if str(source).endswith(".part"):
            raise OSError(5, "Input/output error")
        really_replace(source, target)

    monkeypatch.setattr(os, "replace", second_fails)
    with pytest.raises(ProbeError, match="Input/output error"):
        registry.save(make_probe(seed=1), overwrite=True)
    assert contents(tmp_path / "insults") == before


DYING_WRITERS = """
import os, sys
sys.path.insert(0, {root!r})
from tests.probes.test_probes import make_probe
from trl_attribution.probes import ProbeRegistry

def die_at(step):
    calls = 0
    def dying(name):
        real = getattr(os, name)
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == step:
                os.kill(os.getpid(), 9)
            return real(*args, **kwargs)
        setattr(os, name, call)
    for name in ("fsync", "replace", "mkdir", "rmdir", "unlink"):
        dying(name)

for step in range(1, {steps} + 1):
    child = os.fork()
    if child == 0:
        die_at(step)
        ProbeRegistry({path!r} + str(step)).save(make_probe(seed=1), overwrite=True)
        os._exit(0)
    print("killed" if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9 else "finished")
"""


def test_a_writer_killed_at_any_step_of_overwriting_leaves_the_old_probe_or_the_new_one(
    tmp_path: Path, commands: Commands
) -> None:
    steps = 20
    for step in range(1, steps + 1):
        ProbeRegistry(tmp_path / f"probes{step}").save(make_probe())
    root = str(Path(__file__).resolve().parents[2])
    script = DYING_WRITERS.format(root=root, steps=steps, path=str(tmp_path / "probes"))
    ended = commands.run(tmp_path, "python", "-c", script)
    outcomes = ended.stdout.split()
    assert outcomes[0] == "killed", ended.stderr
    assert outcomes[-1] == "finished", "there are more steps to die at than were tried"
    left = [check_after_a_killed_writer(ProbeRegistry(tmp_path / f"probes{step}")) for step in range(1, steps + 1)]
    assert left[0] == "old"
    assert left[-1] == "new"


def check_after_a_killed_writer(registry: ProbeRegistry) -> str:
    """Whether the old or the new probe is there, after making sure that the registry goes on working."""
    which = {make_probe().fingerprint: "old", make_probe(seed=1).fingerprint: "new"}
    found = [which[probe.fingerprint] for probe in registry]
    assert len(found) == 1
    registry.save(make_probe(seed=2), overwrite=True)
    assert registry.load("insults").fingerprint == make_probe(seed=2).fingerprint
    assert [path.name for path in registry.path.iterdir() if path.is_dir()] == ["insults"]
    return found[0]


def test_a_probe_set_aside_by_a_killed_writer_is_still_there(tmp_path: Path) -> None:
    registry = ProbeRegistry(tmp_path)
    registry.save(make_probe())
    (tmp_path / "insults").rename(tmp_path / ".insults.old")
    assert registry.names() == ["insults"]
    assert registry.load("insults").fingerprint == make_probe().fingerprint
    with pytest.raises(ProbeError, match="already in"):
        registry.save(make_probe(seed=1))
    assert (tmp_path / "insults" / "probe.json").exists()


def test_calibration_added_later_does_not_make_it_another_probe(tmp_path: Path) -> None:
    registry = ProbeRegistry(tmp_path)
    bare = replace(make_probe(), reference_scores=None)
    registry.save(bare)
    registry.save(replace(registry.load("insults"), reference_scores=torch.rand(3, 20)), overwrite=True)
    assert registry.load("insults").fingerprint == bare.fingerprint


def test_a_single_probe_folder_can_be_read_by_itself(tmp_path: Path) -> None:
    folder = ProbeRegistry(tmp_path).save(make_probe())
    moved = folder.rename(tmp_path / "elsewhere")
    assert read_probe(moved).name == "insults"
