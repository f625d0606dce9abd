"""What a report says of an audit, and that nothing of a dataset can get out of the place it stands in."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import DatasetCard, ModelCard
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tests.audit_cases import auditor_of, pair_rows, tiny_loaded, tiny_probe
from tests.markdown_page import MarkdownPage
from tests.report_cases import HOSTILE, VALIDATION, Case, make_case
from trl_attribution.errors import DataError, SettingsError, StoreError
from trl_attribution.pairs import PairReader
from trl_attribution.pairs.lookup import pairs_at_rows
from trl_attribution.probes import ProbeRegistry
from trl_attribution.report.answer import answer_of
from trl_attribution.report.card import CardKind, card
from trl_attribution.report.findings import read_findings
from trl_attribution.report.page import write_report
from trl_attribution.report.page_data import ReportConfig
from trl_attribution.report.story import pairs_story, story
from trl_attribution.report.texts import visible


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("report"))


@pytest.fixture
def write(case: Case, tmp_path: Path) -> Callable[..., str]:
    def run(dataset: Any = case.data, **settings: Any) -> str:
        target = tmp_path / "report.html"
        write_report(case.folder, dataset, output=target, **settings)
        return target.read_text(encoding="utf-8")

    return run


class Tags(HTMLParser):
    """Every element and attribute that a page has."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.attributes: set[str] = set()
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.add(tag)
        self.attributes.update(name for name, _ in attrs)
        self.scripts += tag == "script"


def embedded(page: str, name: str) -> Any:
    found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_a_folder_read_back_says_what_the_audit_itself_said(tmp_path: Path) -> None:
    loaded = tiny_loaded()
    probes = [tiny_probe(loaded), tiny_probe(loaded, "other", layer=1)]
    audit = auditor_of(loaded, probes, layers=(1, 3)).audit(pair_rows(60), tmp_path)
    for rule in ({"top_k": 25}, {"threshold": 0.01}, {"fdr": 0.5}):
        flagged = audit.flag(**rule)
        flagged.save_manifests()
        found = read_findings(tmp_path)
        towards = [pair for pair in flagged.flags if pair.score > 0]
        count = found.listed.flagged
        assert found.rule == flagged.flags.rule
        assert found.left_out == len(flagged) - len(towards)
        assert list(found.listed.pair_ids[:count]) == [pair.pair_id for pair in towards]
        assert found.listed.score[:count].tolist() == [pair.score for pair in towards]
        assert [found.probes[place].column.probe for place in found.listed.probe[:count]] == [
            pair.probe for pair in towards
        ]
        if not found.left_out:
            assert list(found.sources) == flagged.sources()


def test_without_a_manifest_pairs_are_listed_at_a_rate_that_is_stated(tmp_path: Path) -> None:
    loaded = tiny_loaded()
    auditor_of(loaded, [tiny_probe(loaded)]).audit(pair_rows(30), tmp_path, results=False)
    found = read_findings(tmp_path)
    assert found.rule is not None and found.rule.fdr == 0.05 and found.rule_is_default
    assert "No manifest lies in the folder" in " ".join(answer_of(found).certainty)
    # Few are flagged: those that rank next stand behind them, each pair once.
    assert len(found.listed) == len(set(found.listed.pair_ids)) == 30
    assert found.listed.rank.tolist() == list(range(1, 31))


def test_an_audit_without_probes_says_that_nothing_was_asked(tmp_path: Path) -> None:
    auditor_of(tiny_loaded(), layers=(1,)).audit(pair_rows(6), tmp_path)
    report = write_report(tmp_path)
    page = report.path.read_text(encoding="utf-8")
    assert report.path == tmp_path / "report.html"
    assert "No behavior was asked about" in page and 'id="pairs"' not in page


def test_the_answer_counts_pairs_and_names_sources_that_stand_out(case: Case) -> None:
    found = read_findings(case.folder)
    answer = answer_of(found)
    assert (
        answer.headline
        == f"{found.listed.flagged} of 38 pairs ({found.listed.flagged / 38:.1%}) are flagged for 2 behaviors"
    )
    assert list(answer.towards) == [one.outcome.headline for one in found.probes]
    assert sum(one.flagged for one in found.probes) == found.listed.flagged
    row = next(row for row in found.sources if row.flagged)
    sure = replace(found, sources=(replace(row, q_value=1e-6, enrichment=4.0), *found.sources[1:]))
    assert f"1 source stands out with {row.flagged} of them" in answer_of(sure).origins
    assert "4.0 times the share elsewhere" in answer_of(sure).origins


def test_the_histogram_counts_every_pair_and_mirrors_it_for_chance(case: Case) -> None:
    found = read_findings(case.folder)
    for one in found.probes:
        assert one.histogram.counts.sum() == 38
        assert one.histogram.null is not None and one.histogram.null.sum() == pytest.approx(38)


def test_every_text_is_in_the_page_and_none_outside_of_its_json(case: Case, write: Callable[..., str]) -> None:
    page = write()
    data, texts = embedded(page, "data"), embedded(page, "texts-0")
    shown = {entry["p"][0][1]: entry for entry in texts}
    for number, hostile in enumerate(HOSTILE):
        entry = shown[visible(f"{hostile[:120]} ({number})", 20_000)[0]]
        assert entry["c"] == [["assistant", *visible(f"Yes: {hostile}", 20_000)]]
    assert data["rows"]["length"] == 38
    # Nothing of it became an element or an attribute.
    tags = Tags()
    tags.feed(page)
    assert not tags.found & {"img", "svg", "iframe", "object", "embed", "link", "base"}
    assert tags.scripts == page.count("<script>") + page.count('<script type="application/json"')
    assert [name for name in tags.attributes if name.startswith("on") or name in ("style", "srcdoc", "src")] == []
    for piece in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL):
        assert not set(piece) & set("<>&\u2028\u2029")


def test_the_policy_allows_the_scripts_of_the_page_and_nothing_else(write: Callable[..., str]) -> None:
    page = write()
    found = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)
    assert found is not None
    policy = dict(part.split(" ", 1) for part in found[1].replace("&#39;", "'").split("; "))
    assert policy["default-src"] == "'none'" and policy["connect-src"] == "'none'"
    assert all(source.startswith("'sha256-") for source in policy["script-src"].split())
    assert len(policy["script-src"].split()) == len(re.findall(r"<script>", page))
    assert "unsafe" not in found[1] and "http" not in found[1]


def test_the_page_without_its_data_stays_below_five_megabytes(write: Callable[..., str]) -> None:
    page = write()
    rest = re.sub(r'<script type="application/json".*?</script>', "", page, flags=re.DOTALL)
    assert len(rest.encode()) < 5_000_000


def test_a_page_without_the_dataset_says_so(case: Case, tmp_path: Path) -> None:
    moved = case.data.rename(case.data.with_name("elsewhere.jsonl"))
    try:
        report = write_report(case.folder, output=tmp_path / "report.html")
    finally:
        moved.rename(case.data)
    assert report.texts == 0
    assert "The dataset was not at hand" in report.path.read_text(encoding="utf-8")


def test_another_dataset_shows_no_wrong_text(case: Case, tmp_path: Path, write: Callable[..., str]) -> None:
    page = write(pair_rows(24, start=500))
    assert "38 pairs are no longer in the dataset" in page
    assert embedded(page, "texts-0") == [None] * 38
    with pytest.raises(DataError):
        write(str(tmp_path / "absent.jsonl"))


def test_texts_are_carried_up_to_the_number_and_size_asked_for(write: Callable[..., str]) -> None:
    page = write(config=ReportConfig(texts=5))
    assert embedded(page, "data")["texts"]["count"] == 5
    assert "The texts of the first 5 pairs are in this page" in page
    long = write(config=ReportConfig(characters=100))
    assert {part[2] for entry in embedded(long, "texts-0") for part in entry["c"]} >= {0, 999_905}
    assert embedded(write(config=ReportConfig(megabytes=0)), "data")["texts"]["count"] == 0


def test_pairs_are_found_where_they_were_and_where_they_moved(case: Case) -> None:
    pairs = {pair.pair_id: pair for pair in PairReader(case.rows)}
    rows = {pair_id: pair.row for pair_id, pair in pairs.items()}
    assert pairs_at_rows(case.rows, PairReader(case.rows).reading, rows).keys() == pairs.keys()
    turned = list(reversed(case.rows))
    found = pairs_at_rows(turned, PairReader(case.rows).reading, rows)
    assert {pair_id: pair.prompt for pair_id, pair in found.items()} == {
        pair_id: pair.prompt for pair_id, pair in pairs.items()
    }


@given(st.text(max_size=200))
def test_shown_text_has_no_character_that_hides_or_turns_the_line_round(text: str) -> None:
    shown, dropped = visible(text, 1000)
    assert dropped == 0
    assert all(character in "\n\t" or character.isprintable() or character.isspace() for character in shown)
    assert not set(shown) & set("\u200e\u200f\u202a\u202b\u202d\u202e\u2066\u2067\u2068\u2069\x00\x1b\u2028")
    assert json.loads(json.dumps(shown)) == shown


def test_a_probe_that_the_audit_did_not_use_is_refused(case: Case) -> None:
    stranger = replace(
        ProbeRegistry(case.probes).load("rude"), vector=ProbeRegistry(case.probes).load("rude").vector * 2
    )
    with pytest.raises(SettingsError, match="'rude' is not one of this audit's"):
        read_findings(case.folder, [stranger])


def test_probes_at_hand_are_described_and_compared(case: Case, write: Callable[..., str]) -> None:
    page = write(probes=ProbeRegistry(case.probes).load_all())
    assert "Cosine between probes" in page and "cross-validated on its own examples" in page
    assert "Cosine between probes" not in write() and "give the registry with --probes" in write()


def test_a_validation_beside_the_audit_is_part_of_the_page(write: Callable[..., str]) -> None:
    page = write()
    assert "Supported." in page and "more than every control" in page and "filter-top-20" in page


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "holds no validation"),
        ('{"format": "other"}', "holds no validation"),
        (json.dumps({**VALIDATION, "format_version": 2}), "reads up to 1"),
        (json.dumps({**VALIDATION, "claims": [{}]}), "is broken"),
    ],
)
def test_a_broken_validation_is_named(case: Case, content: str, message: str) -> None:
    path = case.folder / "validation.json"
    path.write_text(content, encoding="utf-8")
    try:
        with pytest.raises(StoreError, match=rf"validation\.json.*{message}"):
            read_findings(case.folder)
    finally:
        path.unlink()


@pytest.mark.parametrize("kind", ["dataset", "model"])
def test_a_card_tells_the_same_with_names_that_do_nothing(case: Case, kind: CardKind) -> None:
    found = read_findings(case.folder)
    text = card(found, kind)
    page = MarkdownPage(text.split("---\n", 2)[2])
    assert page.tags <= {"h2", "h3", "p", "table", "thead", "tbody", "tr", "th", "td", "ul", "li", "!--"}
    assert page.attributes == set()
    assert not set(text) & set("\x1b\x00\x07\u202e\u2028")
    assert answer_of(found).headline in page.text
    # The numbers of the tables are those of the audit.
    cells = iter(page.cells)
    by_probe = {}
    for cell in cells:
        if cell in ("rude", "short"):
            by_probe[cell] = [next(cells) for _ in range(3)]
    assert by_probe == {
        one.column.probe: [str(one.column.layer), one.column.kind, str(one.flagged)] for one in found.probes
    }
    row = found.sources[0]
    place = page.cells.index(row.source)
    assert page.cells[place + 1 : place + 4] == [f"{row.pairs}", f"{row.flagged}", f"{row.share:.1%}"]
    assert sum(int(cell) for cell in page.cells[place + 6 : place + 8]) == row.flagged
    assert ("Behaviors before and after training" in text) == (kind == "model")
    # The Hub's own parser reads the front matter; a path never becomes an id there.
    parsed = {"dataset": DatasetCard, "model": ModelCard}[kind](text)
    assert parsed.data.to_dict() == {"tags": ["trl-attribution", "preference"]}


def test_a_card_names_what_is_on_the_hub_and_no_path(case: Case) -> None:
    found = read_findings(case.folder)
    dataset, model = found.info.dataset, found.info.model
    named = {
        "dataset": dataset.model_copy(update={"name": "allenai/preferences"}),
        "model": model.model_copy(update={"name": "allenai/OLMo-2"}),
    }
    info = found.info.model_copy(update=named)
    data = ModelCard(card(replace(found, info=info), "model")).data.to_dict()
    assert (data["base_model"], data["datasets"]) == ("allenai/OLMo-2", ["allenai/preferences"])
    local = dataset.model_copy(update={"name": "/home/ada/secret/data.jsonl"})
    hidden = found.info.model_copy(update={"dataset": local})
    assert "secret" not in card(replace(found, info=hidden), "model")
    with pytest.raises(SettingsError, match="choose dataset or model"):
        card(found, "both")  # type: ignore[arg-type]


def test_a_card_that_is_there_keeps_what_others_wrote_and_has_the_section_once(case: Case, tmp_path: Path) -> None:
    found, path = read_findings(case.folder), tmp_path / "README.md"
    theirs = "---\r\nlicense: mit\r\n---\r\n# Mine\r\n"
    path.write_bytes(theirs.encode())
    once = card(found, "dataset", path)
    assert once.startswith(theirs) and "tags:" not in once
    path.write_bytes(once.encode() + b"\nMore of mine.\n")
    again = card(found, "model", path)
    assert again.count("<!-- trl-attribution audit") == 2 and "of this model pushes towards" in again
    assert again.startswith(theirs) and again.endswith("\nMore of mine.\n")
    assert card(found, "dataset", tmp_path / "new.md") == card(found, "dataset")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="cannot add to the card"):
        card(found, "dataset", path)


def test_the_terminal_tells_the_same_story_and_escapes_what_it_prints(case: Case) -> None:
    found = read_findings(case.folder)
    console = Console(file=io.StringIO(), width=100, force_terminal=False)
    console.print(story(found))
    pairs = {pair.pair_id: pair for pair in PairReader(case.rows)}
    for part in pairs_story(found, pairs, 0, 38, 200):
        console.print(part)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert answer_of(found).headline in shown
    assert all(
        name in shown for name in ("Scores by probe", "Flagged pairs by source", "rude by layer", "Drift", "insults")
    )
    assert all(f"#{place + 1}" in shown for place in range(38))
    assert "\\x1b[31m" in shown and "more characters" in shown
    assert not set(shown) & set("\x1b\x00\x07\u202e\u2028")
