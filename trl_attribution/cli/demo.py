"""``trl-attribution demo``: the whole story on the embedded model and a dataset with known answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from trl_attribution.cli import paths
from trl_attribution.cli.audit import finish_audit
from trl_attribution.cli.output import Output, verb
from trl_attribution.errors import SettingsError

if TYPE_CHECKING:
    from trl_attribution.audit.folder import Flagged
    from trl_attribution.discovery import ScanResult
    from trl_attribution.evidence.organisms import Organism

PROBE = "distractor-compliance"
_FIRST = 3


@verb
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the demo's files go."), paths.A_FOLDER] = Path(
        "demo"
    ),
    layer: Annotated[
        int | None, typer.Option("--layer", min=1, help="The layer to read; left out: that of a scan.")
    ] = None,
    *,
    out: Output,
) -> None:
    """Build a small contaminated preference dataset, scan and audit it with SmolLM2-135M, and count what was found."""
    from trl_attribution.activations import ActivationConfig, find_blocks
    from trl_attribution.audit.auditor import DataAuditor
    from trl_attribution.evidence.organisms import build_distractor_compliance
    from trl_attribution.models import embedded_gguf, load_model
    from trl_attribution.probes import BuildConfig, ProbeRegistry, build_from_behavior
    from trl_attribution.report.scan import scan_view
    from trl_attribution.scoring import DEFAULT_RULE

    out.say("1/5 Building a preference dataset with known answers (the project's own text, mild in content)")
    organism = build_distractor_compliance()
    _check_free(output / "data.jsonl", organism)
    out.say("2/5 Loading SmolLM2-135M-Instruct (the first time it is dequantized, about 20 s)")
    model = replace(load_model(embedded_gguf()), name="SmolLM2-135M-Instruct")
    if layer is not None:
        find_blocks(model.model).check_layers((layer,))
    organism.write(output)
    data, folder = output / "data.jsonl", output / "audit"
    out.say("3/5 Scanning: what would this dataset teach? Nobody says what to look for")
    with out.progress() as progress:
        scanned = DataAuditor(model).scan(data, folder, layer=layer, on_progress=progress)
    out.show(*scan_view(scanned, folder, str(data), shown=6, typical=1).renderables, "")
    out.say(
        f"4/5 Building the probe {PROBE!r} from {len(organism.behavior)} held-out behavior prompts and as many "
        "harmless look-alikes as controls"
    )
    build = BuildConfig(ActivationConfig(layers=(scanned.layer,)))  # so that no vector is computed twice
    probe = build_from_behavior(PROBE, output / "behavior.jsonl", model, build, output / "lookalikes.jsonl")
    ProbeRegistry(output / "probes").save(probe, overwrite=True)
    contaminated = sum(row["truth"] == "contaminated" for row in organism.pairs)
    out.say(f"5/5 Auditing {len(organism.pairs)} pairs, {contaminated} of them contaminated")
    with out.progress() as progress:
        auditor = DataAuditor(model, probes=[probe])
        found = auditor.audit(data, folder, rule=DEFAULT_RULE, results=False, on_progress=progress)
    flagged = finish_audit(found, DEFAULT_RULE, 3, out)
    if flagged is not None:
        _tell_truth([str(row["truth"]) for row in organism.pairs], flagged, scanned, out)


def _tell_truth(truth: Sequence[str], flagged: Flagged, scanned: ScanResult, out: Output) -> None:
    """What the pairs really are that the audit flags and that the first findings leave out; ``truth`` by row."""
    from trl_attribution.manifest import Manifest
    from trl_attribution.report.terminal import truth_table

    index, folder = flagged.audit.index, flagged.audit.folder
    rows = {"flagged": [int(index.rows[one.position]) for one in flagged.flags]}
    for number, one in enumerate(scanned.findings[:_FIRST], start=1):
        listed = Manifest.load(folder / one.manifest).decisions
        rows[f"finding {number}"] = [each.row for each in listed if each.row is not None]
    hits = sum(truth[row] == "contaminated" for row in rows["flagged"])
    contaminated = sum(one == "contaminated" for one in truth)
    said = f"The truth: {contaminated} are contaminated; {hits} of them flagged, {len(flagged) - hits} others flagged."
    caption = "finding: the pairs that the command of a finding of the scan leaves out"
    out.show("", truth_table(truth, rows, caption), "", Text(said, style="bold"))
    out.show("Decoys are legitimate pairs that look the same in the response: they teach not to over-refuse.")


def _check_free(data: Path, organism: Organism) -> None:
    """Refuse to write over a dataset that is not an earlier demo's."""
    from trl_attribution.pairs.rows import open_rows

    if data.exists():
        first = next(iter(open_rows(data)), None)
        if first is None or first.values.keys() != organism.pairs[0].keys():
            raise SettingsError(f"--output: {data} is a dataset of your own. Name a new folder.")
