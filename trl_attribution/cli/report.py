"""``trl-attribution report``: the HTML report of an audit folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from trl_attribution.cli import paths
from trl_attribution.cli.output import Output, verb
from trl_attribution.errors import SettingsError

if TYPE_CHECKING:
    from trl_attribution.probes import Probe
    from trl_attribution.report.findings import Findings

AuditFolder = Annotated[Path, typer.Argument(help="A finished audit's folder.", show_default=False), paths.AUDIT]
Dataset = Annotated[
    str | None,
    typer.Option("--dataset", help="The audited dataset, for the texts; default: the audited file if still there."),
    paths.DATASET,
]
Probes = Annotated[
    Path | None,
    typer.Option("--probes", help="The audit's registry: how its probes were built, and their nulls."),
    paths.REGISTRY,
]
Discovery = Annotated[
    Path | None,
    typer.Option("--discovery", help="What `discover --output` wrote, to be shown too; default: AUDIT/discovery."),
    paths.DISCOVERY,
]

Texts = Annotated[
    int, typer.Option("--texts", min=0, help="Most pairs whose texts are in the page, the most suspicious first.")
]


@verb
def report(
    audit: AuditFolder,
    dataset: Dataset = None,
    probes: Probes = None,
    discovery: Discovery = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Where to write; default: report.html in the audit folder, a card to the terminal."
        ),
        paths.A_FILE,
    ] = None,
    card: Annotated[
        str | None,
        typer.Option(
            "--card", metavar="dataset|model", help="A section for a Hugging Face card, in place of the page."
        ),
    ] = None,
    texts: Texts = 5000,
    *,
    out: Output,
) -> None:
    """Write AUDIT's report.html: one file for people, to open from disk, with the answer, the evidence and a review.

    With --card it is Markdown instead: the summary for a dataset's or a model's card. A card that --output names keeps
    all else that stands in it.
    """
    from trl_attribution.report.findings import read_findings
    from trl_attribution.report.page import write_report
    from trl_attribution.report.page_data import ReportConfig

    if card is not None:
        if dataset is not None or texts != ReportConfig().texts:
            raise SettingsError("--card: a card holds no texts of pairs; leave --dataset and --texts out")
        _card(read_findings(audit, audit_probes(audit, probes), discovery), card, output, out)
        return
    written = write_report(
        audit,
        dataset,
        probes=audit_probes(audit, probes),
        output=output,
        config=ReportConfig(texts=texts),
        discovery=discovery,
    )
    listed = written.kind.counted(written.listed)
    out.show(Text(f"{written.path}: {listed} listed, {written.texts:,} of them with their texts"))
    out.document({"report": str(written.path), "listed": written.listed, "texts": written.texts})


def _card(found: Findings, kind: str, output: Path | None, out: Output) -> None:
    from trl_attribution.report.card import card
    from trl_attribution.utils.atomic import atomic_path

    text = card(found, kind, output)  # type: ignore[arg-type]  # checked by it
    if output is None:
        if not out.as_json:
            typer.echo(text, nl=False)  # as it is: a table must not be wrapped
        out.document({"card": text})
        return
    begun = not output.exists()
    with atomic_path(output) as part:
        part.write_bytes(text.encode("utf-8"))
    out.show(Text(f"{output}: {'a new card' if begun else 'the section is in the card that was there'}"))
    out.document({"written": str(output), "new": begun})


def audit_probes(audit: Path, registry: Path | None) -> list[Probe]:
    """The probes of ``registry`` that the audit used; none without a registry."""
    from trl_attribution.audit.info import AuditInfo
    from trl_attribution.probes import ProbeRegistry

    if registry is None:
        return []
    return ProbeRegistry(registry).load_all(list(AuditInfo.load(audit).probes))
