"""The report in a real browser: drawn, searched, reviewed and exported, offline, with texts that would like to run."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.audit_cases import auditor_of, pair_rows, tiny_loaded
from tests.browser import Seen, browser, context, pixels_like, until, visit
from tests.report_cases import HOSTILE, Case, make_case, save_discoveries, save_scan
from trl_attribution.manifest import Manifest
from trl_attribution.manifest.decisions import ReviewDecisions
from trl_attribution.probes import ProbeRegistry
from trl_attribution.report.agreement import precision_at_k, wilson
from trl_attribution.report.cluster_probes import ClusterProbes
from trl_attribution.report.findings import Findings, read_findings
from trl_attribution.report.page import Served, find_texts, render_page, write_report
from trl_attribution.report.page_data import ReportConfig
from trl_attribution.report.review_server import DecisionsFile, ReviewServer
from trl_attribution.report.texts import visible

PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
IDS = "browser.shown().length ? Array.from(browser.shown(), rows.id) : []"


@dataclass(frozen=True)
class Place:
    """A report, what is in it, and a browser to look at it."""

    case: Case
    report: Path
    found: Findings
    opened: Any


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with browser() as opened:
        case = make_case(tmp_path_factory.mktemp("browser"))
        report = write_report(case.folder, case.data, probes=ProbeRegistry(case.probes).load_all()).path
        yield Place(case, report, read_findings(case.folder), opened)


@pytest.fixture
def seen(place: Place) -> Iterator[Seen]:
    with context(place.opened, offline=True) as profile:
        yield visit(profile, place.report)


def ids(seen: Seen) -> list[str]:
    found: list[str] = seen.page.evaluate(IDS)
    return found


def selected(seen: Seen) -> str:
    found: str = seen.page.locator("#detail code").first.inner_text()
    return found


def chips(seen: Seen) -> dict[str, str]:
    """The decision that the list shows for each pair on this page."""
    shown = seen.page.evaluate(
        "Array.from(document.querySelectorAll('#list li'), (li) => "
        "[rows.id(Number(li.id.slice(5))), li.querySelector('.chip').textContent])"
    )
    return {pair_id: action for pair_id, action in shown if action != "·"}


def decided(seen: Seen) -> dict[str, str]:
    """Every decision that the page holds."""
    found = seen.page.evaluate("decisions.listed().map(([i, { action }]) => [rows.id(i), action])")
    return dict(found)


def export(seen: Seen, path: Path) -> ReviewDecisions:
    with seen.page.expect_download() as waiting:
        seen.page.click("#export")
    waiting.value.save_as(path)
    return ReviewDecisions.load(path)


def faults(seen: Seen, part: str = "html") -> list[tuple[str, str, str]]:
    """What axe-core calls serious or critical."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    return [
        (fault["id"], node["html"][:120], node["failureSummary"][:200])
        for fault in axe.Axe().run(seen.page, context=part).response["violations"]
        if fault["impact"] in ("serious", "critical")
        for node in fault["nodes"]
    ]


def test_every_chart_is_drawn_from_disk_without_a_network(place: Place, seen: Seen) -> None:
    page = seen.page
    expected = {"#chart-sources": "#82a5bd", "#chart-behaviors": "#b5402a", "#chart-drift": "#1f5f8b"}
    expected["#chart-effects"] = "#b5402a"
    expected |= {f"[data-hist='{index}']": "#b5402a" for index in (0, 1)}
    expected |= {f"[data-layers='{index}']": "#1f5f8b" for index in (0, 1)}
    expected |= {f"[data-heatmap='{index}']": "#b5402a" for index in (0, 1)}
    expected |= {f"[data-map='{index}']": "#0072b2" for index in (0, 1)}
    assert page.locator(".plot").count() == len(expected)
    for selector, color in expected.items():
        picture = page.locator(selector).screenshot()
        assert pixels_like(place.opened, picture, color) > 15, selector
    seen.assert_clean()


def test_hostile_text_is_shown_and_runs_nothing(seen: Seen) -> None:
    page = seen.page
    page.select_option("#page-size", "100")
    for pair in range(len(ids(seen))):
        page.evaluate("(i) => browser.select(i)", pair)
        page.evaluate("document.querySelectorAll('#detail details').forEach((one) => (one.open = true))")
    for number, hostile in enumerate(HOSTILE):
        page.fill("#query", f"row:{number}")
        until(seen, f"browser.shown().length === 1 && rows.row[browser.shown()[0]] === {number}")
        text, dropped = visible(f"Yes: {hostile}", 20_000)
        rest = f"… {dropped:,} more characters are not in this page" if dropped else ""
        assert page.locator("#detail .chosen").text_content() == text + rest
    page.evaluate("document.querySelectorAll('#discovery details').forEach((one) => (one.open = true))")
    page.evaluate("document.querySelectorAll('#teaches details').forEach((one) => (one.open = true))")
    for section in ("#discovery", "#teaches"):
        shown = page.locator(section).text_content()
        assert all(visible(hostile[:300], 400)[0] in shown for hostile in HOSTILE), section
    page.hover("#found-0-0 h4")
    page.fill("#query", "\\u202egnp.exe")
    until(seen, "browser.shown().length === 1 && document.querySelector('#detail .prompt').textContent.includes('gnp')")
    # What it would have left behind: the mark, elements in place of text, a navigation, a violation.
    assert page.evaluate("window.__pwned === undefined")
    assert page.locator("main img, main iframe, main a[href^='javascript']").count() == 0
    assert page.url.startswith("file:") and len(page.context.pages) == 1
    seen.assert_clean()


def test_the_list_is_searched_filtered_sorted_and_paged(place: Place, seen: Seen) -> None:
    page, listed = seen.page, place.found.listed
    every = list(listed.pair_ids)
    assert ids(seen) == every

    page.select_option("#by-probe", "1")
    assert ids(seen) == [one for one, probe in zip(every, listed.probe, strict=True) if probe == 1]
    page.click("#filters button[type=reset]")
    until(seen, f"browser.shown().length === {len(every)}")
    source = int(listed.source[0])
    page.select_option("#by-source", str(source))
    assert ids(seen) == [one for one, its in zip(every, listed.source, strict=True) if its == source]
    page.select_option("#by-source", "")
    bound = float(listed.score[7])
    page.fill("#by-score", repr(bound))
    until(seen, f"browser.shown().length < {len(every)}")
    assert set(ids(seen)) == {one for one, score in zip(every, listed.score, strict=True) if score >= bound - 1e-6}
    page.fill("#by-score", "")
    until(seen, f"browser.shown().length === {len(every)}")

    page.fill("#query", f"row:{listed.rows[3]}")
    until(seen, "browser.shown().length === 1")
    assert ids(seen) == [every[3]]
    page.fill("#query", every[5][:12])
    until(seen, f"browser.shown().length === 1 && rows.id(browser.shown()[0]) === '{every[5]}'")
    page.fill("#query", "nothing like this")
    until(seen, "browser.shown().length === 0")
    assert "No pair fits these filters" in page.locator("#detail").inner_text()
    page.fill("#query", "")
    until(seen, f"browser.shown().length === {len(every)}")

    for name, key in (("score", listed.score), ("row", listed.rows)):
        page.select_option("#sort", name)
        assert ids(seen) == [every[i] for i in sorted(range(len(every)), key=lambda i: key[i])]
    page.select_option("#sort", "random")
    assert ids(seen) == sorted(every)
    page.select_option("#sort", "rank")

    page.select_option("#page-size", "10")
    shown = [page.locator("#list li").count()]
    while page.locator("#next-page").is_enabled():
        page.click("#next-page")
        shown.append(page.locator("#list li").count())
    assert shown == [10, 10, 10, 8] and page.locator("#page-of").inner_text() == "Page 4 of 4"
    seen.assert_clean()


def test_every_shortcut_does_what_it_says(place: Place, seen: Seen) -> None:
    page, every = seen.page, list(place.found.listed.pair_ids)
    press = page.keyboard.press
    page.select_option("#page-size", "10")
    page.click("h2 >> nth=0")
    press("n")
    assert selected(seen) == every[1]
    press("p")
    assert selected(seen) == every[0]
    press("]")
    assert selected(seen) == every[10]
    press("[")
    assert selected(seen) == every[0]
    for key, action in (("k", "keep"), ("f", "filter"), ("x", "flip")):
        at = selected(seen)
        press(key)
        assert chips(seen)[at] == action
    assert selected(seen) == every[3]
    press("u")
    assert chips(seen) == {every[0]: "keep", every[1]: "filter"} and selected(seen) == every[2]
    press("p")
    press("c")
    assert chips(seen) == {every[0]: "keep"}
    press("u")
    assert chips(seen) == {every[0]: "keep", every[1]: "filter"}
    press("e")
    page.keyboard.type("kfx")
    press("Enter")
    press("/")
    page.keyboard.type(f"row:{place.found.listed.rows[3]}")
    until(seen, "browser.shown().length === 1")
    press("Escape")
    press("n")
    assert page.input_value("#query") == f"row:{place.found.listed.rows[3]}" and ids(seen) == [every[3]]
    page.fill("#query", "")
    press("Escape")
    until(seen, f"browser.shown().length === {len(every)}")
    press("?")
    assert page.locator("#keys").is_visible()
    press("k")
    press("Escape")
    assert not page.locator("#keys").is_visible()
    page.click("#list li >> nth=4")
    page.keyboard.press("ArrowDown")
    assert selected(seen) == every[5]
    page.keyboard.press("ArrowUp")
    assert selected(seen) == every[4]
    page.uncheck("#shortcuts")
    press("k")
    page.check("#shortcuts")
    # What was typed into fields decided nothing; the note went to its pair.
    assert json.loads(page.evaluate("JSON.stringify(decisions.listed())")) == [
        [0, {"action": "keep", "note": "", "reviewer": "", "decided_at": page.evaluate("decisions.at(0).decided_at")}],
        [
            1,
            {
                "action": "filter",
                "note": "kfx",
                "reviewer": "",
                "decided_at": page.evaluate("decisions.at(1).decided_at"),
            },
        ],
    ]
    seen.assert_clean()


def test_many_pairs_are_decided_at_once_and_one_step_takes_it_back(place: Place, seen: Seen) -> None:
    page, listed = seen.page, place.found.listed
    press = page.keyboard.press
    source = int(listed.source[0])
    of_source = [one for one, its in zip(listed.pair_ids, listed.source, strict=True) if its == source]
    press("k")
    page.select_option("#by-source", str(source))
    assert page.locator("#bulk-open").inner_text().startswith(f"Decide about these {len(of_source)}")
    # By keyboard alone: open, leave decided pairs alone (as it comes), a note, Filter.
    page.evaluate("document.activeElement.blur()")
    press("b")
    assert f"{len(of_source) - 1} pairs will be marked" in page.locator("#bulk-count").inner_text()
    page.focus("#bulk-note")
    page.keyboard.type("kfx: all of it")
    press("Tab")
    press("Tab")
    press("Enter")
    expected = dict.fromkeys(of_source, "filter") | {listed.pair_ids[0]: "keep"}
    assert decided(seen) == expected
    assert f"Marked filter: {len(of_source) - 1} pairs" in page.locator("#message").inner_text()
    assert page.evaluate(f"decisions.at({listed.pair_ids.index(of_source[1])}).note") == "kfx: all of it"
    # The first three of the list, decided or not; and the first three cleared again.
    page.click("#filters button[type=reset]")
    until(seen, f"browser.shown().length === {len(listed)}")
    page.click("#pair-2")
    for button in ("flip", "clear"):
        page.click("#bulk-open")
        page.check("#bulk-first")
        page.uncheck("#bulk-skip")
        page.click(f"#bulk-actions .{button}")
    first = set(listed.pair_ids[:3])
    assert decided(seen) == {one: action for one, action in expected.items() if one not in first}
    press("u")
    assert decided(seen) == expected | dict.fromkeys(first, "flip")
    press("u")
    assert decided(seen) == expected
    press("u")
    assert decided(seen) == {listed.pair_ids[0]: "keep"}
    press("u")
    assert decided(seen) == {}
    page.reload()
    until(seen, "performance.getEntriesByName('charts-drawn').length > 0")
    assert decided(seen) == {}
    seen.assert_clean()


def test_more_decisions_than_a_browser_keeps_are_told_and_can_be_exported(seen: Seen, tmp_path: Path) -> None:
    # As a full storage does it: from the third decision on.
    seen.page.evaluate(
        """() => { const set = Storage.prototype.setItem; let left = 2;
        Storage.prototype.setItem = function (...all) {
          if (left-- <= 0) throw new DOMException("full", "QuotaExceededError"); set.apply(this, all); }; }"""
    )
    seen.page.keyboard.press("b")
    seen.page.click("#bulk-actions .flip")
    assert "36 of 38 are on this page only" in seen.page.locator("#message").inner_text()
    assert len(export(seen, tmp_path / "decisions.jsonl").decisions) == 38


def test_a_link_opens_its_pair_whatever_is_filtered(place: Place, seen: Seen) -> None:
    page, every = seen.page, list(place.found.listed.pair_ids)
    linked = visit(page.context, f"{place.report.resolve().as_uri()}#pair={every[30]}")
    assert selected(linked) == every[30]
    assert linked.page.locator(f"#pair-{30}").is_visible()
    linked.page.fill("#query", "nothing like this")
    until(linked, "browser.shown().length === 0")
    linked.page.evaluate(f"location.hash = 'pair={every[12]}'")
    until(linked, "browser.selected() === 12")
    assert linked.page.input_value("#query") == "" and selected(linked) == every[12]
    # The link that the page itself shows, twice; and one to a pair that is not there.
    linked.page.click("text=Link to this pair")
    linked.page.keyboard.press("n")
    linked.page.evaluate("document.querySelector('#discovery a[href^=\"#pair=\"]').click()")
    shown = linked.page.evaluate("location.hash")
    until(linked, f"'#pair=' + rows.id(browser.selected()) === '{shown}'")
    linked.page.keyboard.press("n")
    linked.page.evaluate("document.querySelector('#discovery a[href^=\"#pair=\"]').click()")
    assert "#pair=" + selected(linked) == shown
    linked.page.evaluate(f"location.hash = 'pair={'f' * 32}'")
    until(linked, "document.getElementById('message').textContent.includes('lists no pair')")
    linked.assert_clean()


def test_clusters_are_colored_copied_and_opened_by_mouse_or_keyboard(place: Place, seen: Seen) -> None:
    page = seen.page
    legend = page.locator("[data-legend='map-0']")
    assert "forum" in legend.inner_text()
    before = page.locator("[data-map='0']").screenshot()
    page.select_option("[data-color='0']", "flagged")
    assert legend.inner_text().split("\n") == ["flagged", "not flagged"]
    after = page.locator("[data-map='0']").screenshot()
    assert pixels_like(place.opened, after, "#0072b2") == 0 < pixels_like(place.opened, before, "#0072b2")
    page.select_option("[data-color='0']", "cluster")
    assert "b2 pizza" in legend.inner_text()
    dot = page.locator("[data-map='0'] circle").first
    title = dot.locator("title").text_content()
    dot.click()
    until(seen, "location.hash.startsWith('#pair=')")
    assert title.startswith(f"row {page.evaluate('rows.row[browser.selected()]')} of ")
    # The heatmap is of pixels: in the dark it is drawn anew.
    light = page.locator("[data-heatmap='0'] canvas").evaluate("(one) => one.toDataURL()")
    page.click("#theme")
    page.click("#theme")
    assert page.locator("[data-heatmap='0'] canvas").evaluate("(one) => one.toDataURL()") != light
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    command = page.locator("#found-0-1-command").inner_text()
    page.focus("#found-0-1 [data-copy]")
    page.keyboard.press("Enter")
    until(seen, "document.querySelector('#found-0-1 [role=status]').textContent === 'Copied.'")
    assert page.evaluate("navigator.clipboard.readText()") == command == page.evaluate("String(getSelection())")
    assert command.split()[:2] == ["trl-attribution", "discover"]
    seen.assert_clean()


def test_clusters_are_shown_for_an_audit_without_probes_too(place: Place, tmp_path: Path) -> None:
    rows = pair_rows(40)
    auditor_of(tiny_loaded(), layers=(3,)).audit(rows, tmp_path)
    save_discoveries(tmp_path, rows)
    with context(place.opened, offline=True) as profile:
        seen = visit(profile, write_report(tmp_path, rows).path)
        assert "found 2 behaviors over 36 prompts" in seen.page.locator("#answer").inner_text()
        assert pixels_like(place.opened, seen.page.locator("[data-heatmap='1']").screenshot(), "#b5402a") > 15
        seen.page.locator("[data-map='1'] circle").first.click()  # a pair that is in no list
        assert seen.page.locator("#found-1-0-command").is_visible() and seen.page.locator("#pairs").count() == 0
        seen.assert_clean()


@pytest.mark.parametrize("settings", [{}, {"color_scheme": "dark"}, PHONE], ids=["light", "dark", "phone"])
def test_a_scan_is_a_page_of_its_own_whose_findings_open_by_keyboard(
    place: Place, tmp_path: Path, settings: dict[str, Any]
) -> None:
    rows = place.case.rows
    auditor_of(tiny_loaded(), layers=(3,)).audit(rows, tmp_path)
    save_scan(tmp_path, rows)
    with context(place.opened, offline=True, reduced_motion="reduce", **settings) as profile:
        seen = visit(profile, write_report(tmp_path).path)
        page = seen.page
        assert page.locator("h1").inner_text() == (
            "What this dataset would teach: 2 findings, 1 harmful one first, then by size of effect"
        )
        assert page.locator(".skip").get_attribute("href") == "#teaches" and page.locator("#pairs").count() == 0
        # What is harmful is red, what is not is not; the narrow one stands apart.
        picture = page.locator("#chart-effects").screenshot()
        hot, other = ("#ef8a72", "#7db8e0") if "color_scheme" in settings else ("#b5402a", "#1f5f8b")
        assert pixels_like(place.opened, picture, hot) > 15 < pixels_like(place.opened, picture, other)
        assert page.locator("#teaches h3").all_inner_texts()[:2] == ["Narrow effects", "Across the dataset"]
        page.focus("#teaches a[href='#finding-2']")
        page.keyboard.press("Enter")
        until(seen, "Math.abs(document.getElementById('finding-2').getBoundingClientRect().top) < innerHeight")
        page.focus("#finding-2 [data-copy]")
        page.keyboard.press("Enter")
        until(seen, "document.querySelector('#finding-2 .register [role=status]').textContent !== ''")
        command = page.locator("#finding-2-command").inner_text()
        assert page.evaluate("String(getSelection())") == command
        assert command.startswith("trl-attribution apply ") and "findings/2.filter.jsonl" in command
        page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
        assert faults(seen) == [] and page.evaluate("window.__pwned === undefined")
        assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
        seen.assert_clean()


def test_a_review_survives_a_reload_and_its_export_makes_the_dataset_that_was_clicked(
    place: Place, tmp_path: Path
) -> None:
    every = list(place.found.listed.pair_ids)
    clicked = {every[0]: "keep", every[2]: "filter", every[3]: "filter", every[4]: "keep"}
    with context(place.opened, offline=True) as profile:
        seen = visit(profile, place.report)
        seen.page.fill("#reviewer", "Ada Lovelace")
        for pair_id, action in clicked.items():
            seen.page.click(f"#pair-{every.index(pair_id)}")
            seen.page.fill("#note", f"because {action} </script>")
            seen.page.click(f"#detail button.{action}")
        again = visit(profile, place.report)
        assert chips(again) == clicked
        assert again.page.input_value("#reviewer") == "Ada Lovelace"
        assert "4 of" in again.page.locator("#progress").inner_text()
        found = export(again, tmp_path / "decisions.jsonl")
        again.assert_clean()
    assert {one.pair_id: one.action for one in found.decisions} == clicked
    assert {one.note for one in found.decisions} == {"because keep </script>", "because filter </script>"}
    assert {one.reviewer for one in found.decisions} == {"Ada Lovelace"}
    assert found.dataset_fingerprint == place.found.info.dataset.fingerprint

    from trl_attribution.manifest import MergeRules, merge

    manifest = Manifest.load(place.case.folder / "manifest.filter.jsonl")
    cleaned = merge([manifest], MergeRules(), [found]).manifest.apply(place.case.rows)
    row_of = dict(zip(every, place.found.listed.rows.tolist(), strict=True))
    kept = {pair_id for pair_id, action in clicked.items() if action == "keep"}
    dropped = {row_of[one] for one in every[: place.found.listed.flagged] if one not in kept}
    assert cleaned == [row for number, row in enumerate(place.case.rows) if number not in dropped]


def test_two_tabs_and_an_import_keep_all_decisions(place: Place, tmp_path: Path) -> None:
    with context(place.opened, offline=True) as profile:
        first, second = visit(profile, place.report), visit(profile, place.report)
        first.page.keyboard.press("f")
        second.page.keyboard.press("n")
        second.page.keyboard.press("x")
        until(first, "document.querySelectorAll('#list .chip-flip').length === 1")
        assert chips(first) == chips(second) and len(chips(first)) == 2
        export(first, tmp_path / "decisions.jsonl")
    with context(place.opened, offline=True) as fresh:
        seen = visit(fresh, place.report)
        assert chips(seen) == {}
        seen.page.set_input_files("#import", tmp_path / "decisions.jsonl")
        until(seen, "document.querySelectorAll('#list .chip-flip').length === 1")
        assert "2 decisions taken" in seen.page.locator("#message").inner_text()
        other = tmp_path / "other.jsonl"
        ReviewDecisions("b" * 64, ()).save(other)
        seen.page.set_input_files("#import", other)
        until(seen, "document.getElementById('message').textContent.includes('another dataset')")
        seen.assert_clean()


def test_precision_at_k_is_what_the_library_says(place: Place, seen: Seen, tmp_path: Path) -> None:
    for key in "ffxkkf":
        seen.page.keyboard.press(key)
    found = export(seen, tmp_path / "decisions.jsonl")
    listed = place.found.listed
    seen.page.click("#precision summary")
    shown = seen.page.locator("#precision-rows tr").all_inner_texts()
    for row, text in zip(precision_at_k(listed.pair_ids[: listed.flagged], found), shown, strict=True):
        numbers = [float(number.replace(",", "")) for number in re.findall(r"[\d,.]+", text)]
        known = [] if row.precision is None else [100 * one for one in (row.precision, row.low, row.high)]
        expected = [row.k, row.reviewed, row.confirmed, *known]
        assert numbers == pytest.approx(expected, abs=0.051)
    for hits, tries in ((0, 3), (3, 3), (17, 20)):
        assert seen.page.evaluate(f"review.wilson({hits}, {tries})") == pytest.approx(wilson(hits, tries))


@pytest.mark.parametrize("settings", [{}, {"color_scheme": "dark"}, PHONE], ids=["light", "dark", "phone"])
def test_axe_finds_no_serious_fault(place: Place, settings: dict[str, Any]) -> None:
    with context(place.opened, **settings) as profile:
        seen = visit(profile, place.report)
        seen.page.keyboard.press("f")
        seen.page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
        assert faults(seen) == []
        if settings != PHONE:
            seen.page.keyboard.press("b")
            assert faults(seen, "#bulk") == []
            seen.page.keyboard.press("Escape")
        wide = seen.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0


def test_the_theme_can_be_chosen_and_stays(place: Place) -> None:
    with context(place.opened) as profile:
        seen = visit(profile, place.report)
        paper = "getComputedStyle(document.body).backgroundColor"
        light = seen.page.evaluate(paper)
        seen.page.click("#theme")
        seen.page.click("#theme")
        assert seen.page.locator("#theme").inner_text() == "Theme: dark"
        assert visit(profile, place.report).page.evaluate(paper) == seen.page.evaluate(paper) != light


def test_pairs_without_texts_are_listed_and_said_to_be_without(place: Place, tmp_path: Path) -> None:
    report = write_report(
        place.case.folder, place.case.data, output=tmp_path / "report.html", config=ReportConfig(texts=2)
    )
    with context(place.opened) as profile:
        seen = visit(profile, report.path)
        seen.page.click("#pair-5")
        assert "The text of this pair is not in the page" in seen.page.locator("#detail").inner_text()
        assert "The texts of the first 2 pairs are in this page" in seen.page.locator("#pairs").inner_text()
        seen.assert_clean()


def test_the_review_server_keeps_what_two_tabs_decide(place: Place) -> None:
    found, file = place.found, place.case.folder / "decisions.ada.jsonl"
    texts, notes = find_texts(found, place.case.data, ReportConfig())
    decisions = DecisionsFile.open(place.case.folder, "ada", found.info.dataset.fingerprint)
    page = render_page(found, texts, notes, Served("ada", file.name))
    probes = ClusterProbes(place.case.folder, found.info, found.extras.discoveries)
    server = ReviewServer(page, decisions, frozenset(found.listed.pair_ids), probes=probes)
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        with context(place.opened) as profile:
            first, second = visit(profile, server.url), visit(profile, server.url)
            first.page.keyboard.press("f")
            second.page.keyboard.press("n")
            second.page.keyboard.press("x")
            first.page.bring_to_front()
            until(first, "document.querySelectorAll('#list .chip-flip').length === 1")
            first.page.keyboard.press("u")
            until(first, "document.querySelectorAll('#list .chip-filter').length === 0")
            second.page.bring_to_front()
            until(second, "document.querySelectorAll('#list .chip-filter').length === 0")
            assert second.page.locator("#message").inner_text() == ""
            # All at once, seen by the other tab, and taken back.
            second.page.keyboard.press("b")
            second.page.click("#bulk-actions .filter")
            first.page.bring_to_front()
            until(first, f"decisions.size === {len(found.listed)}")
            second.page.keyboard.press("u")
            until(first, "decisions.size === 1")
            # A cluster becomes a probe, by keyboard; a name that is taken is told.
            assert faults(first, "[data-register='0-0']") == []
            for form, expected in (
                ("0-0", "Registered: "),
                ("0-0", "registered before: "),
                ("1-0", "Not registered: "),
            ):
                first.page.fill(f"[data-register='{form}'] input", "praises-pizza")
                first.page.keyboard.press("Enter")
                told = f"document.querySelector(\"[data-register='{form}'] [role=status]\").textContent"
                until(first, f"{told}.includes('{expected}')")
            first.console[:] = [line for line in first.console if "status of 400" not in line]
            linked = visit(profile, f"{server.url}#pair={found.listed.pair_ids[9]}")
            assert selected(linked) == found.listed.pair_ids[9]
            first.assert_clean()
            second.assert_clean()
        saved = ReviewDecisions.load(file).decisions
        second_to_read = found.listed.pair_ids[int(found.listed.read_first[1])]  # a served page opens on those
        assert [(one.pair_id, one.action, one.reviewer) for one in saved] == [(second_to_read, "flip", "ada")]
        assert ProbeRegistry(place.case.folder / "probes").names() == ["praises-pizza"]
    finally:
        server.close()
        thread.join()
