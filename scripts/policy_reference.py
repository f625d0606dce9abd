"""Writes the policy reference and its JSON schema from the models: ``python scripts/policy_reference.py [DOCS]``."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trl_attribution.gate.policy.schema import policy_schema

DOCS = Path(__file__).resolve().parents[1] / "docs"
_INTRO = """\
# Gate policy

What `gate.yaml` may say. This page is written from the models that check it
(`python scripts/policy_reference.py`). [gate-policy.schema.json](../gate-policy.schema.json) is the same for
editors, and `trl-attribution gate schema` prints it. Unknown keys are errors, and so is a key without a value.

[Gate your preference data in CI](../how-to/gate-in-ci.md) shows a policy at work;
[Formats](../formats.md#gate-policy) says what is stored beside it.
"""


def main(docs: Path) -> None:
    """Write the page and the schema below ``docs``."""
    schema = policy_schema()
    (docs / "gate-policy.schema.json").write_text(json.dumps(schema, indent=2) + "\n", encoding="utf-8")
    sections = "\n\n".join(section(name, model) for name, model in ordered(schema))
    (docs / "reference" / "gate-policy.md").write_text(f"{_INTRO}\n{sections}\n", encoding="utf-8")


def ordered(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The policy, then its parts in the order in which they are first named."""
    waiting, seen = ["Policy"], {"Policy"}
    while waiting:
        name = waiting.pop(0)
        model = schema if name == "Policy" else schema["$defs"][name]
        yield name, model
        for inner in re.findall(r"#/\$defs/(\w+)", json.dumps({k: v for k, v in model.items() if k != "$defs"})):
            if inner not in seen:
                seen.add(inner)
                waiting.append(inner)


def section(name: str, model: dict[str, Any]) -> str:
    """One model: what it is, and a line for each key."""
    whole = next((choice for choice in model.get("anyOf", []) if "properties" in choice), model)
    short = [kind(choice) for choice in model.get("anyOf", []) if "properties" not in choice]
    lines = [f"## {name}", "", text(whole.get("description", "")), ""]
    if short:
        key = "folder" if name == "CacheOptions" else "limit"
        lines += [f"{short[0].capitalize()} alone stands for `{{{key}: ...}}`.", ""]
    lines += ["| key | value | default | |", "|---|---|---|---|"]
    needed = whole.get("required", [])
    for key, field in whole["properties"].items():
        lines.append(
            f"| `{key}` | {kind(field)} | {default(key, field, needed)} | {text(field.get('description', ''))} |"
        )
    return "\n".join(lines)


def default(key: str, field: dict[str, Any], needed: list[str]) -> str:
    """What counts where the key is left out."""
    if key in needed:
        return "needed"
    return f"`{json.dumps(field['default'])}`" if "default" in field else ""


def kind(field: dict[str, Any]) -> str:
    """The type of a value, in words."""
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "enum" in field:
        return " or ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    if field.get("type") == "array":
        return f"list of {kind(field['items'])}"
    if field.get("type") == "object":
        return f"mapping of names to {kind(field['additionalProperties'])}"
    return number(field)


def number(field: dict[str, Any]) -> str:
    """A plain value and its range."""
    types = field.get("type", "value")
    words = {
        "integer": "whole number",
        "number": "number",
        "string": "text",
        "boolean": "true or false",
        "null": "null",
    }
    named = " or ".join(words.get(each, each) for each in ([types] if isinstance(types, str) else types))
    if field.get("format") == "date":
        return "date"
    limits = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
    return " ".join([named, *(f"{word} {field[name]:g}" for name, word in limits.items() if name in field)])


def text(description: str) -> str:
    """A docstring as one line of Markdown in a table."""
    plain = re.sub(r"\s+", " ", description).strip().replace("|", "\\|")
    return plain.replace("``", "`")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS)
