"""Discovery inside a report: what the page and the terminal tell of it, and how a cluster becomes a probe."""

from __future__ import annotations

import base64
import io
import json
import shlex
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from tests.report.test_report import embedded
from tests.report.test_report_review import ask, send
from tests.report_cases import Case, make_case
from trl_attribution.discovery import StoredDiscovery, cluster_probe
from trl_attribution.errors import SettingsError, StoreError
from trl_attribution.probes import ProbeRegistry
from trl_attribution.report.answer import answer_of
from trl_attribution.report.cluster_probes import ClusterProbes
from trl_attribution.report.clusters import register_command, suggested_name
from trl_attribution.report.findings import read_findings
from trl_attribution.report.page import write_report
from trl_attribution.report.review_server import DecisionsFile, ReviewServer
from trl_attribution.report.story import story


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("discovery"))


@pytest.fixture
def case(made: Case, tmp_path: Path) -> Case:
    """A copy of the audit, to be written to."""
    shutil.copytree(made.folder, tmp_path / "audit")
    return replace(made, folder=tmp_path / "audit")


@pytest.fixture
def server(case: Case) -> Iterator[ReviewServer]:
    found = read_findings(case.folder)
    decisions = DecisionsFile.open(case.folder, "ada", found.info.dataset.fingerprint)
    probes = ClusterProbes(case.folder, found.info, found.extras.discoveries)
    server = ReviewServer("<p>page</p>", decisions, frozenset(found.listed.pair_ids), probes=probes)
    thread = threading.Thread(target=server.serve)
    thread.start()
    yield server
    server.close()
    thread.join()


def test_the_answer_and_the_terminal_tell_what_nobody_asked_about(made: Case) -> None:
    found = read_findings(made.folder)
    assert "found 2 behaviors over 36 prompts" in answer_of(found).unasked
    console = Console(file=io.StringIO(), width=100, force_terminal=False)
    console.print(story(found))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for words in ("Behaviors that changed, by size of effect", "What the dataset teaches", "pizza", "unchanged: 2"):
        assert words in shown
    assert not set(shown) & set("\x1b\x00\x07\u202e\u2028")
    shutil.move(made.folder / "discovery", made.folder / "aside")
    try:
        assert "Discovery" not in answer_of(read_findings(made.folder)).unasked
        elsewhere = read_findings(made.folder, discovery=made.folder / "aside")
        assert answer_of(elsewhere).unasked == answer_of(found).unasked
        with pytest.raises(StoreError, match="there is no discovery in"):
            read_findings(made.folder, discovery=made.folder / "nowhere")
    finally:
        shutil.move(made.folder / "aside", made.folder / "discovery")


def test_the_heatmap_of_the_page_is_that_of_the_file_with_alike_rows_together(made: Case, tmp_path: Path) -> None:
    page = write_report(made.folder, made.data, output=tmp_path / "report.html").path.read_text(encoding="utf-8")
    stored = StoredDiscovery.load(made.folder / "discovery" / "prompts")
    shown = embedded(page, "data")["discoveries"][0]["heatmap"]
    cosine = np.frombuffer(base64.b64decode(shown["cosine"]), "i1").reshape(36, 36) / 127
    known = stored.heatmap.numpy()
    assert np.allclose(np.sort(cosine.ravel()), np.sort(known.ravel()), atol=0.005)
    assert np.allclose(cosine.diagonal(), 1) and np.allclose(cosine, cosine.T)
    beside = np.diagonal(cosine, 1).mean()
    assert beside > np.diagonal(known, 1).mean() + 0.2
    labels = {"b1": 0, "b2": 1, "": -1}
    assert sorted(shown["cluster"]) == sorted(labels[one] for one in stored.discovery.heatmap)
    # Rings say what is flagged now, not what was when pairs were mapped.
    points = embedded(page, "data")["discoveries"][0]["map"]
    listed = read_findings(made.folder).listed
    flagged = set(listed.pair_ids[: listed.flagged])
    assert points["flagged"] == [int(one.pair_id in flagged) for one in stored.discovery.map]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": {"name": "other", "fingerprint": "b" * 64, "pairs": 38}}, "another dataset or model"),
        ({"mode": "pairs"}, "holds a discovery over pairs"),
        ({"heatmap": ("b1",)}, "is broken"),
        ({"clusters": "none"}, "is broken"),
    ],
)
def test_a_discovery_that_does_not_belong_here_is_named(case: Case, change: dict[str, object], message: str) -> None:
    path = case.folder / "discovery" / "prompts" / "discovery.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **change}), encoding="utf-8")
    with pytest.raises(StoreError, match=rf"prompts.*{message}"):
        read_findings(case.folder)


def test_the_command_is_quoted_and_names_the_audits_own_registry(made: Case) -> None:
    one = StoredDiscovery.load(made.folder / "discovery" / "pairs").discovery.clusters[0]
    folder = Path("my audits/it's; rm -rf $HOME `x`")
    command = register_command(folder, folder / "discovery", one)
    assert shlex.split(command) == [
        *("trl-attribution", "discover", str(folder)),
        *("--register", f"p1:{suggested_name(one)}", "--probes", str(folder / "probes")),
    ]
    assert shlex.split(register_command(folder, Path("-found"), one))[-2:] == ["--output", "./-found"]
    for hidden in ("line\nbreak", "turned\u202e", "escape\x1b[31m"):
        assert register_command(Path(hidden), Path(hidden) / "discovery", one) == ""
    assert register_command(folder, folder, replace(one, cluster="p1; reboot")) == ""
    assert suggested_name(one) == "img-src-x-onerror-window-pwned-true"
    assert suggested_name(replace(one, name="<>", words=())) == "cluster"


def test_a_click_makes_the_probe_that_the_command_would_make(case: Case, server: ReviewServer) -> None:
    before = {path.name for path in case.folder.iterdir()}
    asked = {"discovery": 1, "cluster": 0, "name": "praises-pizza"}
    status, answer = send(server, "probes", asked)
    assert (status, json.loads(answer)["already"]) == (200, False)
    probe = ProbeRegistry(case.folder / "probes").load("praises-pizza")
    stored = StoredDiscovery.load(case.folder / "discovery" / "pairs")
    model = read_findings(case.folder).info.model.fingerprint
    assert probe.fingerprint == cluster_probe(stored, "p1", "x", model).fingerprint
    assert probe.fingerprint == json.loads(answer)["fingerprint"]
    # Pairs of the dataset made the cluster: they are the probe's own. Means over responses to a prompt are not.
    assert probe.example_vectors is not None and len(probe.example_vectors) == len(stored.vectors["p1"].prompt_vectors)
    by_prompts = StoredDiscovery.load(case.folder / "discovery" / "prompts")
    assert cluster_probe(by_prompts, "b1", "x", model).example_vectors is None
    assert {path.name for path in case.folder.iterdir()} == before | {"probes"}
    # A second click, and a second name for the same cluster, do no harm.
    written = {path: path.read_bytes() for path in (case.folder / "probes").rglob("*.*")}
    status, answer = send(server, "probes", asked)
    assert (status, json.loads(answer)["already"]) == (200, True)
    assert {path: path.read_bytes() for path in (case.folder / "probes").rglob("*.*")} == written
    assert send(server, "probes", {**asked, "name": "other"})[0] == 200
    status, why = send(server, "probes", {"discovery": 0, "cluster": 0, "name": "other"})
    assert (status, "another probe called 'other'" in why) == (400, True)


@pytest.mark.parametrize(
    "asked",
    [
        {"discovery": 1, "cluster": 0, "name": "../outside"},
        {"discovery": 1, "cluster": 0, "name": ".hidden"},
        {"discovery": 1, "cluster": 0, "name": "a/b"},
        {"discovery": 1, "cluster": 0, "name": ""},
        {"discovery": 1, "cluster": 0},
        {"discovery": 1, "cluster": 7, "name": "x"},
        {"discovery": 1, "cluster": -1, "name": "x"},
        {"discovery": 9, "cluster": 0, "name": "x"},
        {"discovery": True, "cluster": 0, "name": "x"},
        {"discovery": "1", "cluster": 0, "name": "x"},
        {},
    ],
)
def test_what_is_no_cluster_or_no_name_is_refused_and_writes_nothing(
    case: Case, server: ReviewServer, asked: dict[str, object]
) -> None:
    assert send(server, "probes", asked)[0] == 400
    assert not (case.folder / "probes").exists()


def test_only_the_review_page_registers_and_only_inside_the_audit_folder(case: Case, server: ReviewServer) -> None:
    asked = {"discovery": 1, "cluster": 0, "name": "x"}
    refused = [
        send(server, "probes", asked, Origin="http://evil.example")[0],
        send(server, "probes", asked, Host="evil.example")[0],
        send(server, "probes", asked, Content_Type="text/plain")[0],
        ask(server, "POST", "/wrong-token/probes", json.dumps(asked))[0],
        ask(server, "GET", f"/{server.token}/probes")[0],
    ]
    assert refused == [403, 403, 415, 404, 404]
    outside = case.folder.parent / "outside"
    outside.mkdir()
    (case.folder / "probes").symlink_to(outside)
    status, why = send(server, "probes", asked)
    assert (status, "is a link" in why) == (400, True)
    assert list(outside.iterdir()) == []


def test_a_probe_that_cannot_be_written_is_an_error_that_is_told(case: Case, server: ReviewServer) -> None:
    (case.folder / "probes").write_text("in the way")
    status, why = send(server, "probes", {"discovery": 1, "cluster": 0, "name": "x"})
    assert (status, "probes" in why) == (500, True)


def test_a_page_without_discoveries_registers_nothing(case: Case) -> None:
    with pytest.raises(SettingsError, match="no such discovery"):
        ClusterProbes(case.folder, read_findings(case.folder).info, ()).register(0, 0, "x")
