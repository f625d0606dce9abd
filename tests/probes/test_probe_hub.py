"""A probe on a hub has a card that says what it is, and comes back as it was; a repository of probes is a registry."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.fake_hub import FakeHub, Repository
from tests.probes.test_probes import make_probe
from trl_attribution.errors import AttributionError, ProbeError, SettingsError
from trl_attribution.probes import ProbeRegistry
from trl_attribution.probes.hub import pull_probes, push_probe


def test_a_pushed_probe_has_a_card_and_comes_back_as_it_was(hub: FakeHub, tmp_path: Path) -> None:
    probe = replace(make_probe(), description="insults *people*", built={"model_name": "/home/me/secret/olmo"})
    pushed = push_probe(probe, "team/probes")
    repository = hub.repositories["team/probes"]
    assert repository.private and set(pushed.files) == {
        "README.md", "insults/probe.json", "insults/probe.safetensors",
    } == set(repository.files)  # fmt: skip
    card = repository.files["README.md"].decode()
    auc = probe.separability[probe.layer]
    for said in (
        probe.model.digest,
        probe.fingerprint,
        f"AUC {auc:.3f}",
        "insults &#42;people&#42;",
        "olmo, fingerprint",
    ):
        assert said in card
    assert "secret" not in card and "base_model" not in card and f"| layer | {probe.layer} " in card

    registry = ProbeRegistry(tmp_path / "pulled")
    (back,) = pull_probes("team/probes", registry)
    assert back.fingerprint == probe.fingerprint == registry.load("insults").fingerprint
    with pytest.raises(ProbeError, match=r"has a probe insults already; replace it with --overwrite"):
        pull_probes("team/probes", registry)
    assert pull_probes("team/probes", registry, "insults", overwrite=True)[0].name == "insults"


def test_probes_share_a_repository_and_its_card(hub: FakeHub, tmp_path: Path) -> None:
    mine = b"---\nlicense: mit\n---\n\n# Ours\n"
    hub.repositories["team/probes"] = Repository(True, {"README.md": mine})
    for name in ("insults", "flattery"):
        push_probe(replace(make_probe(), name=name), "team/probes")
    with pytest.raises(SettingsError, match="team/probes has a probe 'insults'; replace it with --overwrite"):
        push_probe(make_probe(), "team/probes")
    push_probe(make_probe(), "team/probes", overwrite=True)
    card = hub.repositories["team/probes"].files["README.md"]
    assert card.startswith(mine) and card.count(b"\n## insults\n") == card.count(b"\n## flattery\n") == 1
    assert [one.name for one in pull_probes("team/probes", ProbeRegistry(tmp_path))] == ["flattery", "insults"]
    with pytest.raises(ProbeError, match="^probe pull: no probe 'pride' in team/probes; "):
        pull_probes("team/probes", ProbeRegistry(tmp_path), "pride")


def test_a_hub_that_refuses_and_a_probe_that_was_tampered_with_are_one_message(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(AttributionError, match="probe pull: team/none cannot be read"):
        pull_probes("team/none", ProbeRegistry(tmp_path / "none"))
    push_probe(make_probe(), "team/probes")
    hub.repositories["team/probes"].files["insults/probe.safetensors"] += b"!"
    with pytest.raises(ProbeError, match="^probe pull: team/probes/insults.* is damaged"):
        pull_probes("team/probes", ProbeRegistry(tmp_path / "none"))
    assert not (tmp_path / "none").exists()
    with pytest.raises(SettingsError, match="is no model id; write it as owner/name"):
        push_probe(make_probe(), "probes")
