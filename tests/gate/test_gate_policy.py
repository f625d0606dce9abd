"""Policies: what they may say, how their faults are told, and that no text whatever gets through as a pass."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.gate_cases import axis_probe, knowing_probe
from trl_attribution.errors import SettingsError
from trl_attribution.gate.policy.file import load_policy, parse_policy
from trl_attribution.gate.policy.schema import Policy, policy_schema
from trl_attribution.gate.policy.template import policy_template
from trl_attribution.scoring import Rule

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = ROOT / "docs" / "gate-policy.schema.json"

WHOLE = """\
version: 1
model: owner/name
probes: probes/
pins: {insults: "0123456789ab"}
layers: [5, 9]
score: response
reading: {prompt_column: "", split: train, on_bad_row: skip}
encoding: {max_length: null, truncation_mode: keep_end}
compute: {dtype: float32, max_pairs: 100}
cache: {folder: cache, remote: "memory://bucket", push: false}
vectors: vectors
baseline: baseline.safetensors
max_findings: 7
rules:
  probes:
    insults:
      threshold: 0.3
      max_flagged_count: 0
      max_flagged_fraction: {limit: 0.1, severity: warn}
      max_source_fraction: 0.5
      max_score: 1
      drift: 0.2
    "*": {fdr: 0.01, max_flagged_count: 3}
  known_bad: {limit: 0, similarity: 0.9}
  hygiene:
    duplicates: 0
    contradictions: {limit: 1, severity: warn}
    identical_responses: 0
    empty_responses: 0
    long_prompts: {limit: 0, characters: 100}
    length_bias: 0.7
allow:
  - {pair_id: 0123456789abcdef0123456789abcdef, reason: seen, expires: 2026-12-31}
"""


def faults(text: str) -> str:
    with pytest.raises(SettingsError) as caught:
        parse_policy(text, "gate.yaml")
    return str(caught.value)


def test_a_number_stands_for_a_rule_whose_limit_it_is() -> None:
    short = parse_policy(WHOLE).rules.probes["insults"]
    assert short.max_flagged_count == type(short.max_flagged_count)(limit=0, severity="error")
    assert short.drift is not None and (short.drift.limit, short.drift.alpha) == (0.2, 0.01)


def test_the_digest_is_of_what_a_policy_says_not_of_how_it_is_written() -> None:
    turned = yaml.safe_dump(yaml.safe_load(WHOLE) | {"allow": []}, sort_keys=True)
    again = yaml.safe_dump(yaml.safe_load(WHOLE) | {"allow": []}, sort_keys=False)
    assert parse_policy(turned).digest == parse_policy("# a comment\n" + again).digest
    assert parse_policy(turned).digest != parse_policy(WHOLE).digest


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds nothing"),
        ("- 1", "holds a list"),
        ("version: 1", "gate.yaml:1: rules: is missing"),
        ("rules: {hygiene: {duplicates: 0}}", "version: is missing"),
        ("version: 1\nrules: {}", "gate.yaml:2: rules: holds no rule, so everything would pass"),
        ("version: 1\nrules: {hygiene: {duplicate: 0}}", "rules.hygiene.duplicate: is no such key; choose from dupl"),
        (
            "version: 1\nrules:\n  hygiene:\n    duplicates: -1",
            "gate.yaml:4: rules.hygiene.duplicates.limit: should be",
        ),
        ("version: 1\nrules: {hygiene: {duplicates: true}}", "should be a valid integer"),
        ("version: 1\nrules: {hygiene: {duplicates: .nan}}", "should be a valid integer"),
        ("version: 1\nrules: {hygiene: {duplicates: '0'}}", "should be a valid integer"),
        ("version: 1\nrules: {hygiene: {length_bias: .inf}}", "finite number"),
        ("version: 1\nrules: {hygiene: {duplicates:}}", "rules.hygiene.duplicates has no value"),
        ("version: 1\nrules: {hygiene: {duplicates: {limit: 0, severity: fatal}}}", "'error' or 'warn', not fatal"),
        ("version: 1\nprobes: p\nrules: {probes: {a: {}}}", "rules.probes.a: asks for nothing"),
        ("version: 1\nprobes: p\nrules: {probes: {a: {fdr: 0.1}}}", "no rule that counts flagged pairs"),
        (
            "version: 1\nprobes: p\nrules: {probes: {a: {fdr: 0.1, threshold: 0.1, max_flagged_count: 0}}}",
            "not 2 of",
        ),
        (
            "version: 1\nprobes: p\nrules: {probes: {a: {fdr: 0.1, max_flagged_count: 0, max_estimated_count: 9}}}",
            "goes with recall",
        ),
        ("version: 1\nrules: {probes: {a: {max_score: 1}}}", "needs probes"),
        ("version: 1\nprobes: p\nrules: {probes: {a: {max_score: 2}}}", "less than or equal to 1, not 2"),
        ("version: 1\nprobes: p\nrules: {probes: {a: {drift: 0.1}}}", "rules.probes.a.drift needs a baseline"),
        ("version: 1\nrules: {known_bad: 0}", "rules.known_bad needs a baseline"),
        ("version: 1\nprobes: hf://a/b\nrules: {probes: {x: {max_score: 1}}}", "have to be pinned"),
        (
            "version: 2\nrules: {hygiene: {duplicates: 0}}",
            "gate.yaml has format version 2; this trl-",
        ),
        ("version: 1\nversion: 1", "gate.yaml:2: version is given twice"),
        ("a: &a [*a]", "alias of a whole section"),
        ("? [1]\n: 2", "a key that is no plain word"),
        ("version: [", "gate.yaml:1: broken YAML"),
        ("version: !!python/object:os.system 1", "broken YAML"),
        ("version: \x00", "broken YAML"),
        (f"version: {'9' * 5000}", "broken YAML"),
        ("[" * 3000, "nested too deeply"),
        (f"{WHOLE}  - {{pair_id: 0123456789abcdef0123456789abcdef, reason: b, expires: 2027-01-01}}", "twice"),
        (f"{WHOLE}  - {{pair_id: 0, reason: b, expires: 2027-01-01}}", "allow.1.pair_id: should be a valid string"),
        (f"{WHOLE}  - {{pair_id: x, reason: '', expires: 20270101}}", "allow.1.expires: should be a date"),
        (WHOLE.replace("2026-12-31", "2026-02-30"), "allow.0.expires: day is out of range"),
    ],
)
def test_a_fault_is_named_with_its_line_its_key_and_what_was_expected(text: str, message: str) -> None:
    assert message in faults(text)


def test_all_faults_are_listed_at_once() -> None:
    told = faults("version: 1\nmodle: x\nrules: {hygiene: {duplicates: x}}\nlayers: [-1]")
    assert "has 3 faults" in told
    assert all(key in told for key in ("gate.yaml:2: modle", "gate.yaml:3: rules.hygiene", "gate.yaml:4: layers.0"))


def test_hostile_keys_are_escaped() -> None:
    assert "\x1b" not in faults('version: 1\n"\\e[2Jred": 1\nrules: {hygiene: {duplicates: 0}}')


def test_a_policy_that_is_missing_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="gate init"):
        load_policy(tmp_path / "gate.yaml")
    (tmp_path / "gate.yaml").write_bytes(b"version: \xff")
    with pytest.raises(SettingsError, match="not UTF-8"):
        load_policy(tmp_path / "gate.yaml")


def test_paths_start_from_the_folder_of_the_policy(tmp_path: Path) -> None:
    (tmp_path / "gate.yaml").write_text("version: 1\nrules: {hygiene: {duplicates: 0}}\n")
    (tmp_path / "m0").mkdir()
    file = load_policy(tmp_path / "gate.yaml")
    assert file.path("probes") == tmp_path / "probes"
    assert file.model("m0") == str(tmp_path / "m0") and file.model("owner/name") == "owner/name"


# What people and mistakes put into a policy: its own keys, with values of every kind.
_WORDS = (
    "version rules probes hygiene duplicates limit severity insults threshold fdr max_score drift known_bad allow "
    "pair_id reason expires cache layers model encoding max_length pins * length_bias long_prompts baseline"
)
_KEYS = st.sampled_from(_WORDS.split(" "))
_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.dates(),
    st.sampled_from(["error", "warn", "0" * 32, "2026-12-31", 0, 1, 0.5]),
)
_TREES = st.recursive(
    _LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS | st.text(max_size=4), inner, max_size=4)
)
_POLICIES = st.builds(
    lambda rules, more: {"version": 1, "probes": "probes", "rules": rules, **more},
    st.dictionaries(_KEYS, _TREES, max_size=3),
    st.dictionaries(_KEYS, _TREES, max_size=3),
)


def parsed_or_refused(text: str) -> None:
    """What a policy parser may do: say what is wrong, or return a policy that asks for something."""
    told = ""
    try:
        policy = parse_policy(text, "gate.yaml")
    except SettingsError as error:
        told = str(error)
    if told:
        assert "gate.yaml" in told and "pydantic" not in told
        return
    rules = policy.rules
    assert rules.hygiene.given or rules.known_bad or any(probe.given for probe in rules.probes.values())
    assert isinstance(policy, Policy) and len(policy.digest) == 64


@settings(max_examples=120, deadline=None)
@given(_POLICIES)
def test_any_values_are_a_policy_with_rules_or_an_error(values: dict[str, Any]) -> None:
    parsed_or_refused(yaml.safe_dump(values, allow_unicode=True))


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=60))
@example("&a : *a")
@example("!!binary x")
@example("--- 1\n--- 2")
@example("{? {}: 1}")
@example("<<: {version: 1}")
@example("version: 1e999")
@example("version: 0b" + "1" * 20_000)
@example("a: 1:60:60:" + "9" * 400)
def test_any_text_is_a_policy_with_rules_or_an_error(text: str) -> None:
    parsed_or_refused(text)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, len(WHOLE) - 1), st.integers(0, 12), st.text("\n :{}[]-*&!'\"0x\t,", max_size=4))
def test_a_policy_with_a_slip_of_the_pen_is_a_policy_or_an_error(start: int, length: int, typed: str) -> None:
    parsed_or_refused(WHOLE[:start] + typed + WHOLE[start + length :])


def test_the_published_schema_is_that_of_the_parser() -> None:
    assert json.loads(SCHEMA.read_text(encoding="utf-8")) == policy_schema(), (
        "write it anew: python scripts/policy_reference.py"
    )


def test_the_published_policy_reference_is_what_the_script_writes(tmp_path: Path) -> None:
    (tmp_path / "reference").mkdir()
    subprocess.run([sys.executable, str(ROOT / "scripts" / "policy_reference.py"), str(tmp_path)], cwd=ROOT, check=True)
    for name in ("gate-policy.schema.json", "reference/gate-policy.md"):
        assert (tmp_path / name).read_text() == (SCHEMA.parent / name).read_text(), (
            "write it anew: python scripts/policy_reference.py"
        )


def test_the_schema_takes_what_the_parser_takes_and_refuses_unknown_keys() -> None:
    schema = jsonschema.Draft202012Validator(policy_schema())
    jsonschema.Draft202012Validator.check_schema(policy_schema())
    values = yaml.safe_load(WHOLE)
    values["allow"][0]["expires"] = "2026-12-31"
    assert [error.message for error in schema.iter_errors(values)] == []
    for wrong in ({"modle": 1}, {"model": None}, {"rules": {"hygiene": {"duplicates": "many"}}}, {"cache": 1}):
        assert list(schema.iter_errors({**values, **wrong})), wrong


def test_the_policy_that_init_writes_is_a_policy() -> None:
    bare = parse_policy(policy_template(None, None, []))
    assert bare.model is None and not bare.rules.probes and bare.rules.hygiene.given
    probe = knowing_probe([0.5] * 8)
    full = parse_policy(policy_template("owner/name", "probes", [probe]))
    assert full.pins == {"insults": probe.fingerprint}
    assert list(full.rules.probes) == ["insults"] and full.rules.probes["insults"].flagging == Rule(recall=0.9)


def test_a_placeholder_that_nobody_touched_is_no_policy(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"threshold: is still the CHOOSE of `gate init`.*gate init --from"):
        parse_policy(policy_template("owner/name", "probes", [axis_probe()]))
    old = "threshold: 0.3             # pairs that score at least this are flagged; or fdr: 0.05"
    rules = f"version: 1\nprobes: p\nrules:\n  probes:\n    a:\n      {old}\n      max_flagged_count: 0\n"
    (tmp_path / "gate.yaml").write_text(rules)
    with pytest.raises(SettingsError, match=r"gate.yaml:6: threshold 0.3 is the number that an earlier `gate init`"):
        load_policy(tmp_path / "gate.yaml")
    (tmp_path / "gate.yaml").write_text(rules.replace(old, "threshold: 0.3  # chosen by the data team"))
    assert load_policy(tmp_path / "gate.yaml").policy.rules.probes["a"].threshold == 0.3


def test_what_the_template_shows_in_comments_is_valid_too() -> None:
    lines = []
    for line in policy_template("owner/name", "probes", [knowing_probe([0.5] * 8)]).splitlines():
        stripped = line.lstrip()
        shown = stripped.removeprefix("# ")
        keys = (
            "vectors:",
            "baseline:",
            "compute:",
            "  max_pairs:",
            "reading:",
            "  on_bad_row:",
            "known_bad:",
            "allow:",
        )
        keys += ("  - pair_id:", "    reason:", "    expires:", "max_flagged_fraction:", "max_source_fraction:")
        keys += ("max_estimated_count:", "max_score:", "drift:")
        indent = line[: len(line) - len(stripped)]
        lines.append(indent + shown if stripped.startswith("# ") and shown.startswith(keys) else line)
    policy = parse_policy("\n".join(lines))
    assert policy.compute.max_pairs == 5000 and policy.rules.known_bad is not None and len(policy.allow) == 1
    assert set(policy.rules.probes["insults"].given) >= {"max_estimated_count", "max_source_fraction", "drift"}
