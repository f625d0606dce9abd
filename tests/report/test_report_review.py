"""Reviewing on this machine: what is saved, who is answered, and what reviews say."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sklearn.metrics import cohen_kappa_score

from trl_attribution.errors import ManifestError, SettingsError
from trl_attribution.manifest.decisions import ReviewDecision, ReviewDecisions
from trl_attribution.report.agreement import agreement, precision_at_k, wilson
from trl_attribution.report.review_server import DecisionsFile, ReviewServer

FINGERPRINT = "a" * 64
IDS = tuple(f"{number:032x}" for number in range(200))


def review_of(actions: dict[int, str], reviewer: str = "ada") -> ReviewDecisions:
    made = tuple(ReviewDecision(IDS[place], action, "", reviewer) for place, action in actions.items())  # type: ignore[arg-type]
    return ReviewDecisions(FINGERPRINT, made)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "audit").mkdir()
    return tmp_path / "audit"


@pytest.fixture
def server(folder: Path) -> Iterator[ReviewServer]:
    made = ReviewServer("<p>page</p>", DecisionsFile.open(folder, "ada", FINGERPRINT), frozenset(IDS))
    thread = threading.Thread(target=made.serve)
    thread.start()
    yield made
    made.close()
    thread.join()


def ask(
    server: ReviewServer, method: str, path: str, body: str | None = None, **headers: str
) -> tuple[int, str, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, {"Host": f"127.0.0.1:{server.port}", **sent})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text, answer.headers


def post(server: ReviewServer, pair_id: str, action: str | None, note: str = "", **headers: str) -> tuple[int, str]:
    group = {"pair_ids": [pair_id], "decision": action and {"action": action, "note": note}}
    return send(server, "decisions", {"changes": [group]}, **headers)


def send(server: ReviewServer, what: str, values: Any, **headers: str) -> tuple[int, str]:
    sent = {"Content_Type": "application/json", "Origin": f"http://127.0.0.1:{server.port}", **headers}
    return ask(server, "POST", f"/{server.token}/{what}", json.dumps(values), **sent)[:2]


def changes(pair_ids: Any, decision: Any) -> str:
    return json.dumps(
        {"changes": [{"pair_ids": [pair_ids] if isinstance(pair_ids, str) else pair_ids, "decision": decision}]}
    )


def stored(folder: Path) -> dict[str, str]:
    return {one.pair_id: one.action for one in ReviewDecisions.load(folder / "decisions.ada.jsonl").decisions}


def test_each_decision_is_on_disk_when_it_is_answered(server: ReviewServer, folder: Path) -> None:
    assert post(server, IDS[3], "flip", "it insults")[0] == 200
    (saved,) = ReviewDecisions.load(folder / "decisions.ada.jsonl").decisions
    assert (saved.pair_id, saved.action, saved.note, saved.reviewer) == (IDS[3], "flip", "it insults", "ada")
    assert saved.decided_at.endswith("Z")
    post(server, IDS[3], "keep")
    post(server, IDS[4], "filter")
    assert stored(folder) == {IDS[3]: "keep", IDS[4]: "filter"}
    post(server, IDS[3], None)
    assert stored(folder) == {IDS[4]: "filter"}
    assert {path.name for path in folder.iterdir()} == {"decisions.ada.jsonl", ".decisions.ada.lock"}


def test_many_tabs_and_another_server_lose_nothing(server: ReviewServer, folder: Path) -> None:
    other = DecisionsFile.open(folder, "ada", FINGERPRINT)

    def tab(first: int) -> None:
        for place in range(first, 40, 4):
            post(server, IDS[place], "filter")

    tabs = [threading.Thread(target=tab, args=(first,)) for first in range(4)]
    for thread in tabs:
        thread.start()
    for place in range(100, 110):
        other.put({IDS[place]: ReviewDecision(IDS[place], "keep", "", "ada")})
    for thread in tabs:
        thread.join()
    assert stored(folder) == {**dict.fromkeys(IDS[:40], "filter"), **dict.fromkeys(IDS[100:110], "keep")}


def test_many_pairs_are_decided_and_taken_back_at_once(server: ReviewServer, folder: Path) -> None:
    post(server, IDS[7], "keep", "read it")
    flip = {"action": "flip", "note": "all of that source"}
    status, answer = send(server, "decisions", {"changes": [{"pair_ids": list(IDS), "decision": flip}]})
    revision = json.loads(ask(server, "GET", f"/{server.token}/decisions?since=-1")[1])["revision"]
    assert (status, json.loads(answer)) == (200, {"before": revision - 1, "revision": revision, "told": []})
    assert stored(folder) == dict.fromkeys(IDS, "flip")
    undone = [
        {"pair_ids": [one for one in IDS if one != IDS[7]], "decision": None},
        {"pair_ids": [IDS[7]], "decision": {"action": "keep", "note": "read it"}},
    ]
    send(server, "decisions", {"changes": undone})
    (left,) = ReviewDecisions.load(folder / "decisions.ada.jsonl").decisions
    assert (left.pair_id, left.action, left.note) == (IDS[7], "keep", "read it")
    # One that cannot be: nothing of the rest is saved.
    wrong = [{"pair_ids": [IDS[1]], "decision": flip}, {"pair_ids": ["f" * 32], "decision": flip}]
    assert send(server, "decisions", {"changes": wrong})[0] == 400
    assert stored(folder) == {IDS[7]: "keep"}


def test_a_page_is_told_only_when_something_changed(server: ReviewServer, folder: Path) -> None:
    post(server, IDS[0], "keep")
    path = f"/{server.token}/decisions"
    first = json.loads(ask(server, "GET", f"{path}?since=-1")[1])
    assert [one["pair_id"] for one in first["decisions"]] == [IDS[0]]
    assert json.loads(ask(server, "GET", f"{path}?since={first['revision']}")[1])["decisions"] is None
    DecisionsFile.open(folder, "ada", FINGERPRINT).put({IDS[1]: ReviewDecision(IDS[1], "flip", "", "ada")})
    second = json.loads(ask(server, "GET", f"{path}?since={first['revision']}")[1])
    assert [one["pair_id"] for one in second["decisions"]] == [IDS[0], IDS[1]]


def test_only_the_page_that_was_given_the_link_is_answered(server: ReviewServer, folder: Path) -> None:
    page = f"/{server.token}/"
    status, body, headers = ask(server, "GET", page)
    assert (status, body) == (200, "<p>page</p>")
    assert headers["Cache-Control"] == "no-store" and headers["Content-Security-Policy"] == "frame-ancestors 'none'"
    refused = [
        ask(server, "GET", "/")[0],
        ask(server, "GET", "/wrong-token/")[0],
        ask(server, "GET", f"{page}../audit.json")[0],
        ask(server, "GET", page, Host=f"evil.example:{server.port}")[0],
        ask(server, "GET", page, Host="127.0.0.1")[0],
        ask(server, "GET", page, Sec_Fetch_Site="cross-site")[0],
        post(server, IDS[0], "keep", Origin="http://evil.example")[0],
        post(server, IDS[0], "keep", Origin="null")[0],
        post(server, IDS[0], "keep", Content_Type="text/plain")[0],
    ]
    assert refused == [404, 404, 404, 403, 403, 403, 403, 403, 415]
    assert list(folder.glob("decisions*")) == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("not json", 400),
        ("[1]", 400),
        ("[" * 10_000, 400),
        (json.dumps({"changes": []}), 400),
        (json.dumps({"changes": ["keep"]}), 400),
        (json.dumps({"changes": [{"pair_ids": IDS[0], "decision": {"action": "keep"}}]}), 400),
        (changes("f" * 32, {"action": "keep"}), 400),
        (changes("../../etc/passwd", {"action": "keep"}), 400),
        (changes(IDS[0], {"action": "destroy"}), 400),
        (changes(IDS[0], {"action": "keep", "note": 3}), 400),
        (changes(IDS[0], "keep"), 400),
        (changes([IDS[0], "f" * 32], {"action": "keep"}), 400),
        (changes([IDS[0], 3], {"action": "keep"}), 400),
    ],
)
def test_what_is_no_decision_is_refused_and_writes_nothing(
    server: ReviewServer, folder: Path, body: str, status: int
) -> None:
    sent = {"Content_Type": "application/json", "Origin": f"http://127.0.0.1:{server.port}"}
    assert ask(server, "POST", f"/{server.token}/decisions", body, **sent)[0] == status
    assert list(folder.glob("decisions*")) == []


@pytest.mark.parametrize("length", ["17000000", "-1", "many", ""])
def test_what_is_too_long_or_does_not_say_how_long_it_is_is_not_read(server: ReviewServer, length: str) -> None:
    sent = {"Content_Type": "application/json", "Origin": f"http://127.0.0.1:{server.port}", "Content_Length": length}
    assert ask(server, "POST", f"/{server.token}/decisions", "x", **sent)[0] == 413


@pytest.mark.parametrize("name", ["", "../ada", "a/b", "a.b", "-a", "a" * 65, "ada\n"])
def test_a_reviewers_name_cannot_lead_out_of_the_folder(folder: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="cannot be part of a file's name"):
        DecisionsFile.open(folder, name, FINGERPRINT)


def test_a_link_in_place_of_the_file_and_decisions_of_another_dataset_are_refused(folder: Path) -> None:
    (folder / "decisions.ada.jsonl").symlink_to(folder.parent / "outside.jsonl")
    with pytest.raises(SettingsError, match="is a link"):
        DecisionsFile.open(folder, "ada", FINGERPRINT)
    ReviewDecisions("b" * 64, ()).save(folder / "decisions.bob.jsonl")
    with pytest.raises(ManifestError, match="another dataset"):
        DecisionsFile.open(folder, "bob", FINGERPRINT)


def test_kappa_is_that_of_the_textbook_with_an_interval_around_it() -> None:
    first = {place: ("keep", "filter", "flip")[place % 3] for place in range(90)}
    second = {place: "keep" if place % 10 == 0 else first.get(place, "flip") for place in range(10, 95)}
    found = agreement(review_of(first), review_of(second, "bob"))
    shared = [place for place in first if place in second]
    expected = cohen_kappa_score([first[place] for place in shared], [second[place] for place in shared])
    assert found.both == len(shared) == 80 and (found.only_first, found.only_second) == (10, 5)
    assert found.same == sum(first[place] == second[place] for place in shared)
    assert found.kappa == pytest.approx(expected)
    assert found.interval is not None and found.interval[0] < expected < found.interval[1] <= 1
    assert found.kappa_changed is not None and found.kappa_changed > found.kappa - 0.2
    assert sum(found.table.values()) == 80


@pytest.mark.parametrize("second", [{}, {0: "keep", 1: "keep"}])
def test_kappa_of_nothing_in_common_or_of_one_decision_only_is_undefined(second: dict[int, str]) -> None:
    found = agreement(review_of({0: "keep", 1: "keep"}), review_of(second))
    assert (found.kappa, found.interval, found.kappa_changed) == (None, None, None)


def test_agreement_needs_one_dataset_and_one_reviewer_a_file() -> None:
    with pytest.raises(ManifestError, match="different datasets"):
        agreement(review_of({}), ReviewDecisions("b" * 64, ()))
    mixed = ReviewDecisions(FINGERPRINT, (*review_of({0: "keep"}).decisions, *review_of({0: "flip"}, "bob").decisions))
    with pytest.raises(ManifestError, match="several reviewers' decisions about 1 pair"):
        agreement(mixed, review_of({0: "keep"}))


def test_precision_at_k_counts_what_was_reviewed_among_the_first_k() -> None:
    review = review_of({0: "filter", 1: "flip", 5: "keep", 15: "filter", 150: "keep"})
    rows = {row.k: row for row in precision_at_k(IDS, review)}
    assert list(rows) == [10, 20, 50, 100, 200]
    assert (rows[10].reviewed, rows[10].confirmed, rows[10].precision) == (3, 2, pytest.approx(2 / 3))
    assert (rows[20].reviewed, rows[200].reviewed) == (4, 5)
    # Of the second half of the first 50, and of the first 100, nothing was reviewed.
    assert [rows[k].precision is None for k in rows] == [False, False, True, True, False]
    assert (rows[10].low, rows[10].high) == wilson(2, 3)
    (none,) = precision_at_k(IDS, review_of({}), cuts=[10])
    assert (none.precision, none.low, none.high) == (None, 0.0, 1.0)
