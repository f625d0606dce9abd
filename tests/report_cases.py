"""An audit folder with everything in it that a report can show, over texts that would like to run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.audit_cases import SHORT, Row, auditor_of, pair_rows, tiny_loaded, tiny_probe
from trl_attribution.atomic import write_json
from trl_attribution.drift import LayerDrift, save_drift
from trl_attribution.pairs import Encoding
from trl_attribution.probes import ProbeRegistry

PWN = "window.__pwned = true"
HOSTILE = [
    f"<script>{PWN}</script>",
    f"</script><script>{PWN}</script>",
    f'"><img src=x onerror="{PWN}">',
    f"<svg/onload={PWN}>",
    f"javascript:{PWN}//",
    f"<a href='javascript:{PWN}'>click</a>",
    f"<!--<script>{PWN}</script>",
    "{{ 7 * 7 }} {% raw %} {{ self }} ${7*7} <%= 7*7 %>",
    f"<iframe srcdoc='<script>parent.{PWN}</script>'></iframe>",
    "turned \u202egnp.exe\u202c round, \u2066isolated\u2069",
    "bell \x07 escape \x1b[31m nul \x00 line\u2028paragraph\u2029",
    "\x00\x01\x02\x7f\x80\x9f\ufffe\uffff\ufdd0 binary rubbish \ue000\U000f0000",
    "word " * 200_000,
    "a\u0301\u0301\u0301 ﷽ 👩‍👩‍👧 \u200f\u05d0\u05d1",
]
BEHAVIORS = [
    {
        "behavior": "insults",
        "judge": "complies",
        "prompts": 40,
        "prompts_changed": 31,
        "before": {"share": 0.05, "low": 0.0, "high": 0.12, "shown": 8, "judged": 160},
        "after": {"share": 0.81, "low": 0.7, "high": 0.9, "shown": 130, "judged": 160},
        "difference": {"share": 0.76, "low": 0.64, "high": 0.86},
    },
    {
        "behavior": f"<img src=x onerror='{PWN}'>",
        "judge": f"regex:<script>{PWN}</script>",
        "prompts": 12,
        "prompts_changed": 0,
        "before": {"share": 0.5, "low": 0.2, "high": 0.8, "shown": 6, "judged": 12},
        "after": {"share": 0.5, "low": 0.2, "high": 0.8, "shown": 6, "judged": 12},
        "difference": {"share": 0.0, "low": -0.2, "high": 0.2},
    },
]
VALIDATION = {
    "format": "trl-attribution validation",
    "format_version": 1,
    "answer": "supported",
    "sentence": f"Leaving the pairs out lowers it. <script>{PWN}</script>",
    "claims": [
        {
            "behavior": "insults",
            "condition": "filter-top-20",
            "answer": "supported",
            "reason": "more than every control",
            "reduction": {"value": 0.7, "low": 0.5, "high": 0.8},
            "p_holm": 0.002,
            "seeds": 3,
        }
    ],
    "conditions": [{"name": "all", "shares": {"insults": {"value": 0.8, "low": 0.7, "high": None}}}],
    "notes": [],
}


@dataclass(frozen=True)
class Case:
    """One audited dataset."""

    folder: Path
    data: Path
    probes: Path
    rows: list[Row]


def make_case(place: Path) -> Case:
    """38 pairs scored by two probes at two layers, 20 of them flagged; drift and behaviors before and after."""
    rows = [*map(_hostile_row, range(len(HOSTILE))), *pair_rows(24)]
    data = place / "data <img src=x onerror=alert(1)>.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    loaded = tiny_loaded()
    probes = [tiny_probe(loaded), tiny_probe(loaded, "short", layer=1, rows=SHORT)]
    audit = auditor_of(loaded, probes, layers=(1, 3), encoding=Encoding(128, "keep_start")).audit(data, place / "audit")
    audit.flag(top_k=20).save_manifests()
    for probe in probes:
        ProbeRegistry(place / "probes").save(probe)
    write_json(place / "audit" / "behaviors" / "changes.json", {"changes": BEHAVIORS})
    write_json(place / "audit" / "validation" / "validation.json", VALIDATION)
    drifts = [LayerDrift(layer, 0.01 * layer, 0.5, 0.99, 16, torch.zeros(4)) for layer in (1, 2, 3, 4)]
    save_drift(place / "audit", drifts)
    return Case(place / "audit", data, place / "probes", rows)


def _hostile_row(number: int) -> Row:
    text = HOSTILE[number]
    return {
        "prompt": [{"role": "user", "content": f"{text[:120]} ({number})"}],
        "chosen": [{"role": "assistant", "content": f"Yes: {text}"}],
        "rejected": [{"role": "assistant", "content": f"No. {text[:40]}"}],
        "source": f"<b onmouseover='{PWN}'>s{number % 2}</b>",
    }
