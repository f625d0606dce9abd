"""``trl-attribution scan``: what would this dataset teach? No file to write, before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from trl_attribution.audit.config import AuditConfig
from trl_attribution.cli import options, paths
from trl_attribution.cli.output import Output, verb
from trl_attribution.cli.settings import Without
from trl_attribution.discovery.scan_config import ScanConfig


@verb
def scan(
    model: options.GivenModel,
    dataset: options.GivenDataset,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The audit folder to make or go on with."), paths.A_FOLDER
    ] = Path("audit"),
    show: Annotated[int, typer.Option("--show", min=0, help="How many findings to print.")] = 12,
    show_traits: Annotated[
        bool, typer.Option("--show-traits", help="Print how well the model tells each trait.")
    ] = False,
    *,
    looking: ScanConfig,
    settings: Annotated[AuditConfig, Without("layers", "score")],
    out: Output,
) -> None:
    """Tell what DATASET would teach MODEL, most certain first: traits, where, in how many pairs, from which source.

    Every pair's vector is compared with traits that ship with the package (harmful ones and style), over the whole
    dataset, by source and by topic. What is told is beyond what random labels would show. The vectors are those of an
    audit: `audit -o` the same folder goes on with them. report.html tells it to people.
    """
    from trl_attribution.audit.auditor import DataAuditor
    from trl_attribution.discovery.traits.trait import read_traits
    from trl_attribution.report.scan import scan_view, traits_table

    options.refuse_ranks("scan")
    read_traits(looking.traits)  # a wrong name is said before M0 is loaded
    out.say(f"Loading {model}")
    auditor = DataAuditor(model, config=settings)
    with out.progress() as progress:
        found = auditor.scan(dataset, output, on_progress=progress, **vars(looking))
    if show_traits:
        out.show(traits_table(found.traits), "")
    out.show(scan_view(found, output, dataset, show))
    out.show(Text(f"findings: {output / 'findings.json'}"))
    report = _report(output)
    if report is None:
        out.show(Text(f"report: `trl-attribution report {output}` shows them beside what the audit there flags"))
    else:
        out.show(Text(f"report: {report}"))
    told = {"audit": str(output), "report": None if report is None else str(report)}
    out.document({**told, **found.model_dump(mode="json")})


def _report(folder: Path) -> Path | None:
    """Write the page; None where the folder holds somebody's audit, whose page may have been made with more at hand."""
    from trl_attribution.audit.info import AuditInfo
    from trl_attribution.report.page import write_report

    info = AuditInfo.load(folder)
    return None if info.probes or info.training is not None else write_report(folder).path
