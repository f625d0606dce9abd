"""``trl-attribution demo``: the whole story on the embedded model and a dataset with known answers."""

from __future__ import annotations

from collections import Counter
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
    from trl_attribution.evidence.organisms import Organism

PROBE = "distractor-compliance"


@verb
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the demo's files go."), paths.A_FOLDER] = Path(
        "demo"
    ),
    layer: Annotated[
        int | None, typer.Option("--layer", min=1, help="The layer to audit at; left out: the probe's own choice.")
    ] = None,
    *,
    out: Output,
) -> None:
    """Build a small contaminated preference dataset, audit it with SmolLM2-135M, and count what was found."""
    from trl_attribution.activations import ActivationConfig, find_blocks
    from trl_attribution.audit.auditor import DataAuditor
    from trl_attribution.evidence.organisms import build_distractor_compliance
    from trl_attribution.models import embedded_gguf, load_model
    from trl_attribution.probes import BuildConfig, ProbeRegistry, build_from_behavior
    from trl_attribution.report import terminal
    from trl_attribution.scoring import DEFAULT_RULE

    out.say("1/4 Building a preference dataset with known answers (the project's own text, mild in content)")
    organism = build_distractor_compliance()
    _check_free(output / "data.jsonl", organism)
    out.say("2/4 Loading SmolLM2-135M-Instruct (the first time it is dequantized, about 20 s)")
    model = replace(load_model(embedded_gguf()), name="SmolLM2-135M-Instruct")
    if layer is not None:
        find_blocks(model.model).check_layers((layer,))
    organism.write(output)
    out.say(
        f"3/4 Building the probe {PROBE!r} from {len(organism.behavior)} held-out behavior prompts and as many "
        "harmless look-alikes as controls"
    )
    build = BuildConfig() if layer is None else BuildConfig(ActivationConfig(layers=(layer,)))
    probe = build_from_behavior(PROBE, output / "behavior.jsonl", model, build, output / "lookalikes.jsonl")
    ProbeRegistry(output / "probes").save(probe, overwrite=True)
    contaminated = sum(row["truth"] == "contaminated" for row in organism.pairs)
    out.say(f"4/4 Auditing {len(organism.pairs)} pairs, {contaminated} of them contaminated")
    data = output / "data.jsonl"
    with out.progress() as progress:
        auditor = DataAuditor(model, probes=[probe])
        found = auditor.audit(data, output / "audit", rule=DEFAULT_RULE, results=False, on_progress=progress)
    flagged = finish_audit(found, data, DEFAULT_RULE, 5, out)
    if flagged is not None:
        counts = truth_counts(organism, flagged)
        hits = counts["contaminated"][0]
        truth = (
            f"The truth: {contaminated} are contaminated; {hits} of them flagged, {len(flagged) - hits} others flagged."
        )
        out.show("", terminal.truth_table(counts, len(flagged)), "", Text(truth, style="bold"))
        out.show("Decoys are legitimate pairs that look the same in the response: they teach not to over-refuse.")


def _check_free(data: Path, organism: Organism) -> None:
    """Refuse to write over a dataset that is not an earlier demo's."""
    from trl_attribution.pairs.rows import open_rows

    if data.exists():
        first = next(iter(open_rows(data)), None)
        if first is None or first.values.keys() != organism.pairs[0].keys():
            raise SettingsError(f"--output: {data} is a dataset of your own. Name a new folder.")


def truth_counts(organism: Organism, flagged: Flagged) -> dict[str, tuple[int, int]]:
    """By known kind of pair: how many are flagged, of how many."""
    totals = Counter(str(row["truth"]) for row in organism.pairs)
    rows = flagged.audit.index.rows
    hits = Counter(str(organism.pairs[int(rows[found.position])]["truth"]) for found in flagged.flags)
    return {truth: (hits[truth], total) for truth, total in totals.most_common()}
