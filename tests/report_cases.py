"""An audit folder with everything in it that a report can show, over texts that would like to run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tests.audit_cases import SHORT, Row, auditor_of, pair_rows, tiny_loaded, tiny_probe
from tests.tiny import HIDDEN
from trl_attribution.audit.info import AuditInfo
from trl_attribution.discovery import (
    Cluster,
    ClusterVectors,
    Discovery,
    DiscoveryConfig,
    MapPoint,
    StoredDiscovery,
    TopPair,
    TypicalPrompt,
)
from trl_attribution.discovery.findings import (
    Finding,
    LatentFinding,
    Latents,
    ScanResult,
    SourceCount,
    TraitCheck,
    TypicalPair,
    Unnamed,
)
from trl_attribution.discovery.scan_config import ScanConfig
from trl_attribution.evidence.readouts.drift import LayerDrift, save_drift
from trl_attribution.pairs import Encoding, Pair, PairReader
from trl_attribution.probes import ProbeRegistry
from trl_attribution.scoring import SourceRow
from trl_attribution.utils.atomic import write_json

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
    save_discoveries(place / "audit", rows)
    save_scan(place / "audit", rows)
    return Case(place / "audit", data, place / "probes", rows)


def save_discoveries(folder: Path, rows: Sequence[Row]) -> None:
    """A discovery over prompts and one over pairs, with clusters that say every hostile text in every field."""
    info = AuditInfo.load(folder)
    pairs = [pair for pair in PairReader(rows) if pair.pair_id]
    draw = np.random.default_rng(0)
    for mode, letter, count in (("prompts", "b", 2), ("pairs", "p", 1)):
        clusters = [_cluster(f"{letter}{number + 1}", mode, number, pairs) for number in range(count)]
        labels = tuple(clusters[number % count].cluster if number < 24 else "" for number in range(36))
        points = draw.normal(size=(len(pairs), 2))
        vectors = {
            one.cluster: ClusterVectors(
                *(torch.tensor(draw.normal(size=shape)) for shape in ((1, HIDDEN), (4, 1, HIDDEN), (4, 1, HIDDEN)))
            )
            for one in clusters
        }
        found = Discovery(
            mode=mode,  # type: ignore[arg-type]
            dataset=info.dataset.model_dump(include={"name", "fingerprint", "pairs"}),
            model=info.model.model_dump(include={"name", "digest"}),
            settings=DiscoveryConfig().to_json(),
            layers=(3,),
            kind="contextual",
            items=36,
            fit=18,
            held_out=18,
            left_out={"unchanged": 2},
            clusters=tuple(clusters),
            rejected=(),
            heatmap=labels,
            map=tuple(
                MapPoint(pair.pair_id, pair.row, pair.source, place < 5, labels[place % 36], float(x), float(y))
                for place, (pair, (x, y)) in enumerate(zip(pairs, points, strict=True))
            ),
            notes=(f"a note {HOSTILE[0]}",),
            seconds={},
        )
        kinds = [number % count if number < 24 else 3 for number in range(36)]
        directions = draw.normal(size=(36, 4)) + 3 * np.eye(4)[kinds]
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        heatmap = torch.tensor(directions @ directions.T)
        StoredDiscovery(found, vectors, heatmap).save(folder / "discovery" / mode)


def save_scan(folder: Path, rows: Sequence[Row]) -> ScanResult:
    """Findings that say every hostile text in every field: a narrow one that is harmful, and one that is everywhere."""
    info = AuditInfo.load(folder)
    typical = tuple(
        TypicalPair(
            pair_id=pair.pair_id, row=pair.row, source=text[:100], score=0.3,
            prompt=text[:300], chosen=text[:300], rejected=text[:300],
        )
        for pair, text in zip(PairReader(rows), HOSTILE, strict=False)
    )  # fmt: skip
    narrow = Finding(
        trait="pizza", says=HOSTILE[2], direction="towards", harmful=True, everywhere=False,
        words=("pizza", *(text[:60] for text in HOSTILE)), topic=1, source=HOSTILE[0], pairs=30, pushing_low=12,
        pushing_high=20, effect=1.2, effect_low=0.8, effect_high=1.7, elsewhere=-0.2, shape_share=0.1, z=5.0,
        adjusted_p=0.001, sources=tuple(SourceCount(source=text[:100], pushing=5, pairs=9) for text in HOSTILE[:3]),
        typical=typical, manifest="findings/1.filter.jsonl",
    )  # fmt: skip
    wide = narrow.model_copy(
        update={
            "says": "shorter answers", "trait": "longer", "direction": "away", "harmful": False, "everywhere": True,
            "words": (), "topic": None, "source": None, "effect": -0.5, "effect_low": -0.7, "effect_high": -0.3,
            "elsewhere": None, "typical": typical[:2], "manifest": "findings/2.filter.jsonl",
        }
    )  # fmt: skip
    latents = Latents(
        sae={"sae": HOSTILE[0], "latents": 64, "reconstruction": {"says": HOSTILE[1]}}, pairs=30, tested=20,
        threshold=4.0, standing=2, findings=(LatentFinding(
            latent=7, everywhere=False, beside=False, topic=1, words=tuple(text[:60] for text in HOSTILE[:3]), pairs=30,
            raised=20, lowered=5, difference=0.2, difference_low=0.1, difference_high=0.3, effect=0.9, effect_low=0.5,
            effect_high=1.3, z=5.0, adjusted_p=0.001, alike=HOSTILE[2], likeness=0.5, promotes=tuple(HOSTILE[9:12]),
            raised_by=((HOSTILE[0], HOSTILE[10], HOSTILE[9]),),
        ),),
    )  # fmt: skip
    found = ScanResult(
        dataset=info.dataset.model_dump(include={"name", "fingerprint", "pairs"}),
        model=info.model.model_dump(include={"name", "digest"}),
        settings=ScanConfig().to_json(), layer=3, pairs=info.dataset.pairs, sampled=False, topics=4, tests=90,
        threshold=4.0, findings=(narrow, wide), explained=2, absent=(HOSTILE[3], "rude"), notes=(HOSTILE[1],),
        traits=(TraitCheck(trait="false-claims", examples=8, sign=0.5, specific=0.5, tells=False),),
        unnamed=(Unnamed(cluster="p1", words=(HOSTILE[0],), lost_words=("soup",), prompt_words=(), share=0.2, pairs=8),
        ), seconds={"vectors": 1.5}, latents=latents,
    )  # fmt: skip
    found.save(folder)
    return found


def _cluster(name: str, mode: str, number: int, pairs: Sequence[Pair]) -> Cluster:
    # Every text once as a prompt and once in a pair: axe-core looks at all of it, which takes its time.
    prompts = (HOSTILE if number == 0 else HOSTILE[:2]) if mode == "prompts" else ()
    typical = tuple(TypicalPrompt(text[:100], 0.9, text[:300], text[:300], text[:300]) for text in prompts)
    texts = HOSTILE if mode == "pairs" else HOSTILE[:2]
    top = tuple(
        TopPair(pair.pair_id, pair.row, text[:100], place + 1, 0.5, 0.01, text[:300], text[:300], text[:300])
        for place, (pair, text) in enumerate(zip(pairs, texts, strict=False))
    )
    return Cluster(
        cluster=name,
        name=HOSTILE[2] if number == 0 else "",
        words=("pizza", *(text[:60] for text in HOSTILE)),
        lost_words=(HOSTILE[0], "soup"),
        prompt_words=(HOSTILE[3],),
        effect=0.3 - 0.1 * number,
        share=0.4,
        consistency=0.7,
        members=12,
        fit=6,
        towards=6,
        against=0,
        p_value=0.001,
        adjusted_p=0.002,
        tightness=0.71,
        held_out_tightness=0.66,
        vector_cosine=0.5,
        stability=0.9,
        layer=3,
        kind="contextual",
        pairs_towards=9,
        typical_prompts=typical,
        top_pairs=top,
        sources=tuple(SourceRow(text[:100], 20, 5, 0.25, 3.0, 0.01, 0.02, 0.1) for text in HOSTILE[:3]),
        sources_by="fdr 0.05",
    )


def _hostile_row(number: int) -> Row:
    text = HOSTILE[number]
    return {
        "prompt": [{"role": "user", "content": f"{text[:120]} ({number})"}],
        "chosen": [{"role": "assistant", "content": f"Yes: {text}"}],
        "rejected": [{"role": "assistant", "content": f"No. {text[:40]}"}],
        "source": f"<b onmouseover='{PWN}'>s{number % 2}</b>",
    }
