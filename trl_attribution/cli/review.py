"""``trl-attribution review``: decide about flagged pairs in a browser, and measure what reviews agree on."""

from __future__ import annotations

import getpass
import re
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from trl_attribution.cli import paths
from trl_attribution.cli.output import Output, verb
from trl_attribution.cli.report import AuditFolder, Dataset, Discovery, Probes, Texts, audit_probes
from trl_attribution.errors import SettingsError

if TYPE_CHECKING:
    from trl_attribution.probes import Probe
    from trl_attribution.report.findings import Findings


@verb
def review(
    audit: AuditFolder,
    dataset: Dataset = None,
    probes: Probes = None,
    discovery: Discovery = None,
    reviewer: Annotated[
        str | None,
        typer.Option("--reviewer", help="Who decides: part of the file's name; default: your login."),
    ] = None,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")] = 0,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in the browser of this machine.")] = False,
    texts: Texts = 5000,
    agreement: Annotated[
        tuple[Path, Path] | None,
        typer.Option("--agreement", help="Do not serve: compare two reviewers' decisions files (Cohen's kappa)."),
        paths.DECISIONS,
    ] = None,
    precision: Annotated[
        Path | None,
        typer.Option("--precision", help="Do not serve: precision at k, and the estimate, by this decisions file."),
        paths.DECISIONS,
    ] = None,
    *,
    out: Output,
) -> None:
    """Serve AUDIT's report to you alone, and write each decision to the audit folder as it is made.

    It opens on the pairs to read first: they tell how many of the flagged ones are wrong. Clusters that discovery found
    become probes in AUDIT/probes at a click. The page answers on 127.0.0.1 under a link that is made anew each time.
    Stop it with Ctrl-C.
    """
    if agreement is not None and precision is not None:
        raise SettingsError("--agreement and --precision: give one of them")
    if agreement is not None:
        _agreement(agreement, out)
    elif precision is not None:
        _precision(audit, precision, out)
    else:
        found = _to_review(audit, audit_probes(audit, probes), discovery)
        _serve(found, dataset, reviewer or _login(), port, open_browser, texts, out)


def _to_review(audit: Path, probes: list[Probe], discovery: Path | None) -> Findings:
    from trl_attribution.report.findings import read_findings

    found = read_findings(audit, probes, discovery)
    if not len(found.listed) and not found.extras.discoveries:
        raise SettingsError(
            f"{audit}: no {found.kind.one} is listed there, so there is nothing to review; audit with probes"
        )
    return found


def _serve(
    found: Findings, dataset: str | None, reviewer: str, port: int, open_browser: bool, texts: int, out: Output
) -> None:
    from trl_attribution.report.cluster_probes import ClusterProbes
    from trl_attribution.report.page import Served, find_texts, render_page
    from trl_attribution.report.page_data import ReportConfig
    from trl_attribution.report.review_server import DecisionsFile, ReviewServer

    decisions = DecisionsFile.open(found.folder, reviewer, found.info.dataset.fingerprint)
    shown, notes = find_texts(found, dataset, ReportConfig(texts=texts))
    page = render_page(found, shown, notes, Served(reviewer, decisions.path.name))
    probes = ClusterProbes(found.folder, found.info, found.extras.discoveries)
    server = ReviewServer(
        page,
        decisions,
        frozenset(found.listed.pair_ids),
        port,
        probes,
        lambda made: [one.sentence for one in found.reviewed_by(made)],
        ("keep", *found.kind.actions),
    )
    out.show(Text(f"Open {server.url}", no_wrap=True, overflow="ignore"))
    out.show(Text(f"Decisions go to {decisions.path}. Stop with Ctrl-C."))
    out.document({"url": server.url, "decisions": str(decisions.path)})
    if open_browser:
        webbrowser.open(server.url)
    try:
        server.serve()
    except KeyboardInterrupt:
        out.say("Stopped; every decision is on disk.")
    finally:
        server.close()


def _agreement(paths: tuple[Path, Path], out: Output) -> None:
    from dataclasses import asdict

    from trl_attribution.manifest.decisions import ReviewDecisions
    from trl_attribution.report.agreement import agreement
    from trl_attribution.report.story import agreement_table

    first, second = (ReviewDecisions.load(path) for path in paths)
    found = agreement(first, second)
    out.show(agreement_table(found))
    counts = {f"{one} / {other}": count for (one, other), count in found.table.items()}
    out.document({**asdict(found), "table": counts})


def _precision(audit: Path, path: Path, out: Output) -> None:
    from dataclasses import asdict

    from trl_attribution.manifest.decisions import ReviewDecisions
    from trl_attribution.report.agreement import precision_at_k
    from trl_attribution.report.findings import read_findings
    from trl_attribution.report.story import precision_table

    found = read_findings(audit)
    review = ReviewDecisions.load(path)
    if review.dataset_fingerprint != found.info.dataset.fingerprint:
        raise SettingsError(f"--precision: {path} is about another dataset than {audit}")
    rows = precision_at_k(found.listed.pair_ids[: found.listed.flagged], review)
    estimates = found.reviewed_by(review.decisions)
    out.show(precision_table(rows), *(Text(one.sentence, style="bold") for one in estimates))
    out.document({"precision": [asdict(row) for row in rows], "estimates": [asdict(one) for one in estimates]})


def _login() -> str:
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a container without such a user
        name = ""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-_") or "reviewer"
