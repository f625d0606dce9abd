"""Examples that are no pairs are called what they are, and offered what can be done to them."""

from __future__ import annotations

import io
import json
import re
import threading
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.audit_cases import ASKS, THINGS, auditor_of, pair_rows, tiny_loaded, tiny_probe
from tests.browser import browser, context, until, visit
from tests.gate_cases import write_rows
from tests.report.test_report_review import post
from tests.report_cases import save_scan
from trl_attribution.pairs.formats import OWN_SHOWN
from trl_attribution.pairs.own_responses import FILE_NAME, OwnConfig
from trl_attribution.report.answer import answer_of
from trl_attribution.report.card import card
from trl_attribution.report.findings import Findings, read_findings
from trl_attribution.report.page import Served, find_texts, render_page, write_report
from trl_attribution.report.page_data import ReportConfig
from trl_attribution.report.review_server import DecisionsFile, ReviewServer
from trl_attribution.report.scan import scan_view
from trl_attribution.report.story import pairs_story, story
from trl_attribution.report.terminal import audit_summary, result
from trl_attribution.report.texts import ListedPairs, visible

PAIRS = re.compile(r"\b(pairs?|chosen|rejected|flip\w*)\b", re.IGNORECASE)
HEADINGS = {"sft": ("Sample", "M0's own"), "kto": ("Raised", "Lowered"), "rollouts": ("Best of the group", "Worst")}
BEHAVIOR = [
    {"prompt": ask.format(thing), "undesired": f"{thing} is dull, you fool.", "desired": f"I am sorry, not {thing}."}
    for ask in ASKS
    for thing in THINGS[:4]
]
ONE = {"sft": "sample", "kto": "sample", "rollouts": "group"}


def rows_of(kind: str) -> list[dict[str, Any]]:
    """A dozen examples of ``kind``; no text of them holds a word that the tests look for."""
    rows = pair_rows(12)
    if kind == "sft":
        return [{"messages": row["prompt"] + row["chosen"], "source": row["source"]} for row in rows]
    sides = [
        (row["prompt"], row[side], side == "chosen", row["source"]) for row in rows for side in ("chosen", "rejected")
    ]
    value = "label" if kind == "kto" else "advantage"
    return [
        {"prompt": prompt, "completion": text, value: good if kind == "kto" else 2.0 * good - 1, "source": source}
        for prompt, text, good, source in sides
    ]


def audited(kind: str, place: Path) -> tuple[Path, Any]:
    """The dataset, and its audit with manifests."""
    loaded = tiny_loaded()
    data = write_rows(place / "data.jsonl", rows_of(kind))
    auditor = auditor_of(loaded, [tiny_probe(loaded, rows=BEHAVIOR)], own=OwnConfig(n=1, max_new_tokens=4))
    audit = auditor.audit(data, place / "audit")
    audit.flag(top_k=5).save_manifests()
    return data, audit


def test_whoever_shows_texts_shows_m0s_own_responses_beside_those_that_were_compared_with_them(tmp_path: Path) -> None:
    data, audit = audited("sft", tmp_path)
    kept = [json.loads(line) for line in (audit.folder / FILE_NAME).read_text().splitlines()[1:]]
    said = {row["prompt"][-1]["content"]: row["responses"][0] for row in kept}
    flagged, found = audit.flag(top_k=3), read_findings(audit.folder)
    texts, _ = find_texts(found, data, ReportConfig())
    assert all(row.rejected == said[row.prompt] for row in flagged)
    shown = {text.rejected[-1].text for text in texts.texts if text}
    assert shown == {visible(text, 1000)[0] for text in said.values()}

    (audit.folder / FILE_NAME).unlink()
    assert {row.rejected for row in flagged} == {OWN_SHOWN}
    texts, _ = find_texts(read_findings(audit.folder), data, ReportConfig())
    assert {text.rejected[-1].text for text in texts.texts if text} == {OWN_SHOWN}


@pytest.mark.parametrize("kind", ["sft", "kto", "rollouts"])
def test_terminal_and_card_use_the_words_of_the_kind(kind: str, tmp_path: Path) -> None:
    data, audit = audited(kind, tmp_path)
    scan = save_scan(audit.folder, rows_of(kind)).model_copy(update={"kind": kind, "sampled": True})
    scan.save(audit.folder)
    found = read_findings(audit.folder)
    screen = io.StringIO()
    texts = ListedPairs(data, found.reading).at(
        dict(zip(found.listed.pair_ids, found.listed.rows.tolist(), strict=True))
    )
    flagged = audit.flag(recall=0.9)
    Console(file=screen, width=160).print(
        story(found),
        *pairs_story(found, texts, 0, 12, 1000),
        audit_summary(audit),
        *result(flagged, {}, ListedPairs(data, found.reading), 3),
        scan_view(scan, audit.folder, str(data), 5),
    )
    # The null turns an example round; only its name is a flip.
    said = re.sub(r"against its own flip|as its own flip", "", screen.getvalue() + card(found, "dataset"))
    assert not [line for line in said.splitlines() if PAIRS.search(line)]
    assert f"of {found.pairs} {ONE[kind]}s" in said and f"about 12 to 20 of 30 {ONE[kind]}s" in said
    assert "--action weight" not in write_report(audit.folder, data).path.read_text(encoding="utf-8")
    assert all(heading.lower() in said.lower() for heading in HEADINGS[kind])


def test_a_page_of_samples_offers_no_flip_and_calls_them_samples(tmp_path: Path) -> None:
    data, audit = audited("sft", tmp_path)
    report = write_report(audit.folder, data).path
    found = read_findings(audit.folder)
    texts, notes = find_texts(found, data, ReportConfig())
    decisions = DecisionsFile.open(audit.folder, "ada", found.info.dataset.fingerprint)
    page = render_page(found, texts, notes, Served("ada", decisions.path.name))
    server = ReviewServer(page, decisions, frozenset(found.listed.pair_ids), actions=("keep", *found.kind.actions))
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        with browser() as opened, context(opened) as profile:
            for where in (report, server.url):
                seen = visit(profile, where)
                _look(seen, found)
            until(seen, "document.getElementById('progress').textContent.includes('1 filter')")
            while not decisions.path.exists():
                seen.page.wait_for_timeout(50)
            assert post(server, found.listed.pair_ids[1], "flip")[0] == 400
    finally:
        server.close()
        thread.join()
    (decided,) = [json.loads(line) for line in decisions.path.read_text().splitlines()[1:]]
    assert decided["action"] == "filter"


def _look(seen: Any, found: Findings) -> None:
    page = seen.page
    page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    # The settings name the columns that were read.
    shown = "\n".join(page.locator("main section:not(#cost), nav").all_inner_texts())
    shown = shown.replace("is as likely as its own flip", "")
    assert not [line for line in shown.splitlines() if PAIRS.search(line)]
    assert f"{answer_of(found).headline}" in shown and "12 samples" in page.locator("main").inner_text()
    buttons = page.locator("#detail .decide button").evaluate_all("(all) => all.map((one) => one.dataset.action ?? '')")
    assert buttons == ["keep", "filter", "", ""]
    headings = page.locator("#detail h3").all_inner_texts()
    assert headings == ["Prompt", "Sample: training pushes towards this", "M0's own: and away from this"]
    page.keyboard.press("x")
    assert page.evaluate("decisions.size") == 0
    page.keyboard.press("b")
    assert page.locator("#bulk-actions button").all_inner_texts() == ["Keep", "Filter", "Clear"]
    assert not PAIRS.search(page.locator("#bulk").inner_text())
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    assert not PAIRS.search(page.locator("#keys").inner_text())
    page.keyboard.press("Escape")
    page.keyboard.press("f")
    assert page.evaluate("decisions.listed().map(([, one]) => one.action)") == ["filter"]
