"""One answer on every surface: the terminal, the page, the story, the card and JSON tell the same of one audit."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from tests.browser import browser, context, until, visit
from tests.outcome_cases import NAME, answering_rows, audit_of, refusing_rows
from trl_attribution.audit.folder import Audit, Flagged
from trl_attribution.cli.audit import finish_audit
from trl_attribution.cli.output import Output
from trl_attribution.evidence.validation.rankings import count_flagged
from trl_attribution.manifest.decisions import ReviewDecision, ReviewDecisions
from trl_attribution.report import terminal
from trl_attribution.report.answer import answer_of
from trl_attribution.report.card import card
from trl_attribution.report.findings import Findings, read_findings
from trl_attribution.report.page import Served, find_texts, render_page, write_report
from trl_attribution.report.page_data import ReportConfig
from trl_attribution.report.review_server import DecisionsFile, ReviewServer
from trl_attribution.report.story import pairs_story, story
from trl_attribution.report.texts import ListedPairs
from trl_attribution.scoring import DEFAULT_RULE, ScoreTable

ROWS = {"found": [*answering_rows(40), *refusing_rows(40, start=200)], "clean": refusing_rows(60)}


@dataclass(frozen=True)
class Place:
    folder: Path
    audit: Audit
    flagged: Flagged

    @property
    def headline(self) -> str:
        return self.flagged.flags.outcomes[NAME].headline


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Place]:
    found = {}
    for name, rows in ROWS.items():
        folder = tmp_path_factory.mktemp(name)
        audit = audit_of(rows, folder)
        found[name] = Place(folder, audit, audit.flag())
        found[name].flagged.save_manifests()
    return found


@pytest.fixture(params=list(ROWS))
def place(request: pytest.FixtureRequest, places: dict[str, Place]) -> Place:
    return places[request.param]


def printed(*parts: Any) -> str:
    console = Console(file=io.StringIO(), width=300, force_terminal=False)
    console.print(*parts, sep="\n")
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_default_finds_what_is_there_and_nothing_where_nothing_is(places: dict[str, Place]) -> None:
    answering = set(range(40))
    rows = places["found"].audit.index.rows[places["found"].flagged.flags.positions]
    assert len(answering & set(rows.tolist())) >= 0.8 * 40 >= 4 * len(set(rows.tolist()) - answering)
    assert len(places["clean"].flagged) == 0
    assert places["clean"].headline.startswith(f"No evidence of {NAME}: 0 to ")


def test_every_surface_tells_the_same_sentence(place: Place) -> None:
    listed = ListedPairs(ROWS["found"] if len(place.flagged) else ROWS["clean"], place.audit.reading)
    found = read_findings(place.folder)
    page = write_report(place.folder, listed).path.read_text(encoding="utf-8")
    sentence = place.headline.removesuffix(".")
    assert found.probes[0].outcome.sentence == place.flagged.flags.outcomes[NAME].sentence
    assert answer_of(found).headline == sentence
    assert place.headline in printed(*terminal.result(place.flagged, {}, listed, 3))
    assert f"<h1>{sentence}</h1>" in page and page.count("false discover") == 0
    assert sentence in printed(story(found))
    assert sentence in card(found, "dataset") and sentence in card(found, "model")


def test_the_dashed_line_of_the_scores_is_the_estimate_too(places: dict[str, Place]) -> None:
    one = read_findings(places["found"].folder).probes[0]
    decision = one.outcome.decision
    assert decision is not None and one.histogram.null is not None and one.threshold is not None
    others = one.histogram.null
    assert (others <= one.histogram.counts + 1e-9).all()
    beyond = one.histogram.edges[1:] > one.threshold
    assert others[beyond].sum() == pytest.approx(decision.prevalence.wrong.value, abs=3)


def test_json_holds_the_sentence_and_the_pairs_to_read(places: dict[str, Place], capsys: Any) -> None:
    place = places["found"]
    finish_audit(place.audit, DEFAULT_RULE, 3, Output(as_json=True))
    document = json.loads(capsys.readouterr().out)
    assert document["answer"] == [place.headline]
    assert document["rule"] == {"recall": 0.9, "fdr": 0.05}
    stated = document["decisions"][NAME]
    assert stated["flagged"] == document["flagged"] == len(place.flagged)
    assert f"read these {len(stated['read_first'])} first" in stated["sentence"]


def test_where_nothing_is_flagged_the_top_pairs_are_shown_all_the_same(places: dict[str, Place]) -> None:
    place = places["clean"]
    shown = printed(*terminal.result(place.flagged, {}, ListedPairs(ROWS["clean"], place.audit.reading), 10))
    assert "first 10, none of them flagged" in shown
    found = read_findings(place.folder)
    assert found.listed.flagged == 0 and len(found.listed) >= 50
    assert found.listed.read_first.tolist() == list(range(10))


def test_pairs_to_read_first_are_listed_and_marked(places: dict[str, Place]) -> None:
    place = places["found"]
    found = read_findings(place.folder)
    plan = place.flagged.flags.outcomes[NAME].read_first
    names = place.flagged.pair_ids.take(plan.positions).to_pylist()
    assert [found.listed.pair_ids[at] for at in found.listed.read_first.tolist()] == names
    told = printed(*pairs_story(found, {}, 0, len(found.listed), 80))
    assert told.count("read first") == len(names)


def test_a_folder_without_a_manifest_is_read_by_the_default_rule(places: dict[str, Place], tmp_path: Path) -> None:
    audit = audit_of(ROWS["found"], tmp_path)
    for manifest in tmp_path.glob("manifest.*.jsonl"):
        manifest.unlink()
    found = read_findings(tmp_path)
    assert found.rule == DEFAULT_RULE and found.rule_is_default
    flagged = audit.flag()
    towards = [pair.pair_id for pair in flagged.flags if pair.score > 0]
    assert list(found.listed.pair_ids[: found.listed.flagged]) == towards
    assert found.probes[0].outcome.sentence == flagged.flags.outcomes[NAME].sentence


def test_scores_of_an_earlier_release_open_and_say_that_the_number_is_not_known(tmp_path: Path) -> None:
    audit_of(ROWS["found"], tmp_path).flag(top_k=10).save_manifests()
    path = tmp_path / "scores.parquet"
    table = pq.ParquetFile(path)
    header = json.loads(table.schema_arrow.metadata[b"trl_attribution"])
    for column in header["columns"]:
        del column["known"]
    schema = table.schema_arrow.with_metadata({b"trl_attribution": json.dumps(header).encode()})
    groups = [table.read_row_group(number) for number in range(table.metadata.num_row_groups)]
    with pq.ParquetWriter(path, schema) as writer:
        for group in groups:
            writer.write_table(group.cast(schema))
    assert ScoreTable.open(path).known == {}
    found = read_findings(tmp_path)
    assert found.listed.flagged == 10
    headline = answer_of(found).headline
    assert headline.startswith(f"How many pairs push towards {NAME} is not known")
    assert "flagged 10 of 80 pairs (the top 10)" in headline


def test_a_validation_filters_what_the_default_rule_flags(places: dict[str, Place]) -> None:
    for place in places.values():
        table = ScoreTable.open(place.folder / "scores.parquet")
        towards = [pair for pair in place.flagged.flags if pair.score > 0]
        assert count_flagged(table, table.columns[-1]) == len(towards)


def reviewed_folder(place: Place, folder: Path, read: list[str], right: set[str]) -> Findings:
    """The audit in another folder, with these pairs reviewed as they are."""
    audit_of(ROWS["found"], folder).flag().save_manifests()
    actions = [ReviewDecision(one, "filter" if one in right else "keep") for one in read]
    fingerprint = place.audit.info.dataset.fingerprint
    ReviewDecisions(fingerprint, tuple(actions)).save(folder / "decisions.ada.jsonl")
    return read_findings(folder)


def test_reviews_update_the_estimate(places: dict[str, Place], tmp_path: Path) -> None:
    place = places["found"]
    before = read_findings(place.folder)
    ids = place.flagged.pair_ids.to_pylist()
    right = {name for name, row in zip(ids, place.audit.index.rows.tolist(), strict=True) if row < 40}
    first = [before.listed.pair_ids[at] for at in before.listed.read_first.tolist()]
    found = reviewed_folder(place, tmp_path, first, right)
    told = found.probes[0].reviewed
    assert before.probes[0].reviewed is None and told is not None
    assert told.read == len(first) and told.unread == 0
    truly = len(right & set(place.flagged.flags.pair_ids))
    assert told.right.low <= truly <= told.right.high <= told.flagged
    assert told.count.low <= len(right) <= told.count.high
    assert told.right.high - told.right.low < told.flagged / 2
    assert told.sentence in answer_of(found).towards and told.sentence in card(found, "dataset")
    # All of the flagged read: nothing is left to estimate of them.
    whole = reviewed_folder(place, tmp_path, list(place.flagged.flags.pair_ids), right).probes[0].reviewed
    assert whole is not None and (whole.right.low, whole.right.high) == (truly, truly)
    # The more is read, the less doubt is left.
    few = reviewed_folder(place, tmp_path, first[:5], right).probes[0].reviewed
    assert few is not None and few.unread == len(first) - 5
    assert few.right.high - few.right.low > told.right.high - told.right.low


def test_a_review_opens_on_the_pairs_to_read_and_tells_what_they_come_to(places: dict[str, Place]) -> None:
    folder = places["found"].folder
    found = read_findings(folder)
    decisions = DecisionsFile.open(folder, "ada", found.info.dataset.fingerprint)
    texts, notes = find_texts(found, ROWS["found"], ReportConfig())
    page = render_page(found, texts, notes, Served("ada", decisions.path.name))

    def told(made: Sequence[ReviewDecision]) -> list[str]:
        return [one.sentence for one in found.reviewed_by(made)]

    server = ReviewServer(page, decisions, frozenset(found.listed.pair_ids), told=told)
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        with browser() as opened, context(opened) as profile:
            seen = visit(profile, server.url)
            first = [found.listed.pair_ids[place] for place in found.listed.read_first.tolist()]
            assert seen.page.evaluate("browser.shown().slice(0, 5).join()") == ",".join(
                str(found.listed.pair_ids.index(one)) for one in first[:5]
            )
            seen.page.keyboard.press("f")
            until(seen, "page.find('reviewed').textContent.startsWith('1 pair reviewed: ')")
            seen.page.keyboard.press("k")
            until(seen, "page.find('reviewed').textContent.startsWith('2 pairs reviewed: ')")
            assert seen.page.locator("#progress").inner_text().endswith(f"; 2 of the {len(first)} to read first")
            assert seen.page.locator("#reviewed").inner_text() == told(decisions.read()[1])[0]
            seen.assert_clean()
    finally:
        server.close()
        thread.join()
        decisions.path.unlink(missing_ok=True)


def test_several_probes_are_each_told_of(places: dict[str, Place]) -> None:
    found = read_findings(places["found"].folder)
    one = found.probes[0]
    twice = replace(found, probes=(one, replace(one, outcome=replace(one.outcome, probe="others"))))
    answer = answer_of(twice)
    assert answer.headline.endswith("are flagged for 2 behaviors")
    assert [sentence.count("push towards") for sentence in answer.towards] == [1, 1]
