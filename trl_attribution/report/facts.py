"""Names and values that the page shows: the figures under the answer, probes, settings, cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.filesize import decimal

from trl_attribution.audit.info import CostInfo, DatasetInfo, ModelInfo, TrainingInfo, VectorsInfo
from trl_attribution.discovery import ScanResult
from trl_attribution.pairs.dataset_pass import alike_text
from trl_attribution.probes import CosineTable, cosine_table
from trl_attribution.probes.controls import controls_text
from trl_attribution.report.answer import rule_text
from trl_attribution.report.findings import Findings
from trl_attribution.utils.kinds import ExampleKind
from trl_attribution.utils.text import counted, duration_text, printable, tally

Fact = tuple[str, str]
_LONGEST = 400


@dataclass(frozen=True)
class Tile:
    """One figure under the answer."""

    name: str
    value: str
    under: str


def tiles(found: Findings) -> list[Tile]:
    """The figures under the answer."""
    dataset, listed = found.info.dataset, found.listed
    shown = [
        Tile(f"{found.kind.several.capitalize()} audited", f"{found.pairs:,}", f"in {counted(dataset.rows, 'row')}")
    ]
    if found.rule is not None:
        share = f"{listed.flagged / found.pairs:.1%} of all" if found.pairs else ""
        shown.append(Tile("Flagged", f"{listed.flagged:,}", share))
        shown.append(Tile("Read first", f"{len(listed.read_first):,}", "tells how many of the flagged are wrong"))
        if len(found.probes) == 1 and (decision := found.probes[0].outcome.decision) is not None:
            shown.append(Tile("Push towards it", str(decision.prevalence.count), "estimated, 95% interval"))
        highest = max((one.at_flag_layer.highest for one in found.probes), default=0.0)
        shown.append(Tile("Highest score", f"{highest:.3f}", "of -1 to 1"))
    scan = found.extras.scan
    if scan is not None:
        harmful = sum(one.harmful for one in scan.findings)
        shown.append(Tile("Findings", f"{len(scan.findings):,}", f"{harmful:,} of them harmful"))
    # A scan's vectors are those of its audit, and their seconds are in its own.
    seconds = sum((found.info.cost if found.rule is not None or scan is None else scan).seconds.values())
    shown.append(Tile("Time", duration_text(seconds), printable(found.info.cost.device_name or "", 40)))
    return shown


def probe_facts(found: Findings, name: str) -> list[Fact]:
    """What is known of a probe that the audit used; what is not at hand is said."""
    probe = next((one for one in found.known_probes if one.name == name), None)
    if probe is None:
        return [
            ("fingerprint", found.info.probes[name]),
            ("how it was built", "not at hand when this page was made; give the registry with --probes"),
        ]
    auc = probe.separability.get(probe.layer)
    clean = probe.reference_scores
    return [
        ("flags at layer", str(probe.layer)),
        ("separability", "unknown" if auc is None else f"AUC {auc:.3f}, cross-validated on its own examples"),
        ("prompts", str(len(probe.contexts)) if probe.contexts is not None else "not known: response score only"),
        ("controls", controls_text(probe)),
        ("calibrated", "no" if clean is None else f"on {clean.shape[1]:,} clean {found.kind.several}"),
        ("promotes", " ".join(repr(token) for token in probe.shown_tokens) or "unknown"),
        *_flat({name: value for name, value in probe.built.items() if name != "controls"}),
        ("fingerprint", probe.fingerprint),
    ]


def cosines(found: Findings) -> CosineTable | None:
    """Between the probes at hand, at the first one's layer; None where there is nothing to compare."""
    first = next(iter(found.known_probes), None)
    if first is None:
        return None
    shared = [probe for probe in found.known_probes if first.layer in probe.layers]
    return cosine_table(shared, first.layer) if len(shared) > 1 else None


def about(found: Findings) -> list[tuple[str, list[Fact]]]:
    """Dataset, model, settings, cost and versions."""
    info = found.info
    return [
        ("Dataset", _dataset_facts(info.dataset)),
        ("Model", _model_facts(info.model, info.vectors)),
        ("Cost", _cost_facts(info.cost, info.dataset.kind)),
        ("Rule and settings", [("rule", rule_text(found)), *_flat(info.settings)]),
        *([("Scan", _scan_facts(found.extras.scan))] if found.extras.scan else []),
        *([("While training", _training_facts(info.training))] if info.training else []),
        ("Versions", [(name, str(version)) for name, version in info.versions.items()]),
    ]


def _dataset_facts(dataset: DatasetInfo) -> list[Fact]:
    skipped = tally(dataset.skipped)
    return [
        ("name", printable(dataset.name, _LONGEST)),
        ("format", dataset.format),
        ("rows", f"{dataset.rows:,}"),
        (f"different {dataset.kind.several}", f"{dataset.pairs:,}"),
        ("repeated rows", f"{dataset.duplicate_rows:,}"),
        *(
            [("also flipped", f"{dataset.kind.counted(dataset.contradictions)} stand there the other way round too")]
            if dataset.kind.flip
            else []
        ),
        ("left out", skipped or "none"),
        ("maybe cut", f"{dataset.kind.counted(dataset.truncated_pairs)} reach max_length"),
        ("zero vectors", alike_text(dataset.alike) or "none"),
        ("tokens", f"{dataset.tokens:,}"),
        ("fingerprint", dataset.fingerprint),
    ]


def _model_facts(model: ModelInfo, vectors: VectorsInfo) -> list[Fact]:
    return [
        ("M0", printable(model.name, _LONGEST)),
        ("computes in", f"{model.dtype} on {model.device}"),
        ("fingerprint", model.digest),
        ("layers", ", ".join(map(str, vectors.settings.layers))),
        ("vectors", f"{vectors.computed:,} computed, {vectors.reused:,} stored already"),
        ("path", printable(f"{vectors.path} ({vectors.path_reason})", _LONGEST)),
    ]


def _cost_facts(cost: CostInfo, kind: ExampleKind) -> list[Fact]:
    lines = [(f"{stage}", duration_text(seconds)) for stage, seconds in cost.seconds.items()]
    if cost.pairs_per_second:
        lines.append((f"{kind.several} a second", f"{cost.pairs_per_second:,.1f}"))
    if cost.training_seconds:
        lines.append(("training in all", duration_text(cost.training_seconds)))
    if cost.tokens_computed:
        lines.append(("tokens computed", f"{cost.tokens_computed:,}; the sequences hold {cost.tokens_in_sequences:,}"))
    if cost.flops:
        lines.append(("FLOPs", f"{cost.flops:.3g} in the linear layers"))
    for name, peak in (("memory", cost.peak_memory_bytes), ("device memory", cost.peak_device_memory_bytes)):
        if peak:
            lines.append((name, f"{decimal(peak)} at its peak"))
    threads = "? threads" if cost.threads is None else counted(cost.threads, "thread")
    lines.append(("machine", f"{printable(cost.device_name or '', 80)}, {threads}"))
    return lines


def _scan_facts(scan: ScanResult) -> list[Fact]:
    return [*_flat(scan.settings), *((stage, duration_text(seconds)) for stage, seconds in scan.seconds.items())]


def _training_facts(training: TrainingInfo) -> list[Fact]:
    return _flat(training.model_dump(exclude_unset=True, exclude={"behaviors", "drift", "notes", "windows"}))


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[Fact]:
    """Nested settings as lines, digests and tables of them included."""
    lines: list[Fact] = []
    for name, value in values.items():
        label = f"{prefix}{printable(name, 60)}".replace("_", " ")
        if isinstance(value, Mapping):
            lines += _flat(value, f"{label} ")
        elif value is not None:
            lines.append((label, printable(value, _LONGEST)))
    return lines
