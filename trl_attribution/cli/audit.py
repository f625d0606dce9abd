"""``trl-attribution audit``: vectors, scores, flags and manifests for a dataset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from trl_attribution.audit.config import AuditConfig, WitnessConfig
from trl_attribution.cli import options, paths
from trl_attribution.cli.devices import idle_devices, start_ranks
from trl_attribution.cli.output import Output, verb
from trl_attribution.errors import SettingsError
from trl_attribution.scoring.rule import DEFAULT_RULE, Rule
from trl_attribution.utils.text import counted

if TYPE_CHECKING:
    from trl_attribution.audit.auditor import DataAuditor
    from trl_attribution.audit.folder import Audit, Flagged
    from trl_attribution.audit.shares import Share
    from trl_attribution.audit.witness import Witnessed
    from trl_attribution.report.ending import Results


@verb
def audit(
    model: options.GivenModel,
    dataset: options.GivenDataset,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The audit folder to make or go on with."), paths.A_FOLDER
    ] = None,
    probes: Annotated[
        Path | None, typer.Option("--probes", help="Folder of probes to score against."), paths.REGISTRY
    ] = None,
    probe: Annotated[list[str] | None, typer.Option("--probe", help="Only this probe; can be repeated.")] = None,
    vectors: Annotated[
        Path | None,
        typer.Option("--vectors", help="A vector store to share between audits; default: OUTPUT/vectors."),
        paths.A_FOLDER,
    ] = None,
    show: Annotated[int, typer.Option("--show", min=0, help="How many suspicious pairs to print.")] = 10,
    shard: Annotated[
        str | None,
        typer.Option("--shard", metavar="I/N", help="Compute only the I-th of N shares, without scores; see --merge."),
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Finish an audit whose N shares were computed with --shard.")
    ] = False,
    devices: Annotated[
        int | None,
        typer.Option("--devices", min=1, metavar="N", help="Compute on N devices of this machine, a process each."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read the data, run a sample, print what to expect; write nothing.")
    ] = False,
    *,
    rule: Rule | None,
    settings: AuditConfig,
    witness: WitnessConfig,
    out: Output,
) -> None:
    """Audit DATASET: which pairs push MODEL towards the behaviors of the probes.

    Writes vectors, scores.parquet and two manifests into the audit folder. Run it again after a kill and it goes on
    where it was; run it with another rule and only the flags are made anew. Several processes share the work with
    --devices, under a launcher (accelerate launch -m trl_attribution.cli audit ...), or as jobs of their own (--shard
    and --merge).
    """
    from trl_attribution.audit.auditor import DataAuditor
    from trl_attribution.audit.shares import Share
    from trl_attribution.probes import ProbeRegistry
    from trl_attribution.utils.distributed import current_ranks

    if output is None and not dry_run:
        raise SettingsError("--output: say where the audit goes (-o audit/), or use --dry-run")
    if (shard is not None) + merge + dry_run > 1:
        raise SettingsError("--shard, --merge and --dry-run: give one of them")
    idle = options.chosen(probe=probe or None, **(rule.as_dict() if rule else {}))
    if idle and probes is None:
        named = next(iter(idle)).replace("_", "-")
        raise SettingsError(
            f"--{named}: without --probes nothing is scored. Give the folder of probes, or leave it out."
        )
    rule = rule or DEFAULT_RULE
    paths.check_rows(rule.top_k, dataset)
    alone = "--dry-run" if dry_run else "--merge" if merge else None
    if devices is not None:
        start_ranks(devices, settings.device, alone)
    share = Share.parse(shard) if shard is not None else None
    ranks = current_ranks()
    with ranks.together():
        chosen = ProbeRegistry(probes).load_all(probe or None) if probes is not None else None
        rule.check_probes(chosen or [])
        auditor = DataAuditor(model, probes=chosen, config=settings, ranks=ranks)
    if alone is not None:
        options.refuse_ranks(alone)
    if dry_run:
        _dry_run(auditor, dataset, out)
        return
    assert output is not None  # checked above
    if share is not None:
        _compute_share(auditor, dataset, output, share, vectors, out)
        return
    if not merge:
        out.say(f"Loading {model}{'' if devices else idle_devices(settings.device)}")
    with out.progress() as progress:
        finish = auditor.merge if merge else auditor.audit
        found = finish(dataset, output, vectors=vectors, rule=rule, results=False, on_progress=progress)
    if found.is_main:
        asks = None if merge or ranks.world > 1 else auditor
        finish_audit(found, rule, show, out, asks, witness)


def finish_audit(
    found: Audit,
    rule: Rule,
    show: int,
    out: Output,
    auditor: DataAuditor | None = None,
    witness: WitnessConfig | None = None,
) -> Flagged | None:
    """Write what :func:`write_results` writes, and show it: what is flagged, or None for an audit without probes.

    Without an ``auditor`` at hand the second witness cannot be heard, and that is said.

    Raises:
        Exit: with status 2, after all the rest, where the report could not be written.
    """
    from trl_attribution.report import terminal
    from trl_attribution.report.ending import write_results

    out.show(terminal.audit_summary(found))
    results = write_results(found, rule, partial(_heard, auditor=auditor, witness=witness, out=out))
    report = None if results.report is None else str(results.report)
    document = {"audit": str(found.folder), "info": found.info.to_json(), "report": report}
    if results.flagged is None:
        out.show("No probes were given: vectors are stored, nothing is scored.")
        out.document(document)
        return _unless_failed(results)
    heard = results.witnessed
    out.show(*terminal.result(results.flagged, results.manifests, results.listed, show))
    if heard is not None:
        out.show(terminal.witness_summary(heard))
    if report is not None:
        out.show(Text(f"report: {report}"))
    told = None if heard is None else heard.as_json()
    out.document({**document, **_document(results.flagged, results.manifests, show), "witness": told})
    return _unless_failed(results)


def _unless_failed(results: Results) -> Flagged | None:
    """What is flagged; what failed was logged, and a script has to see it too."""
    if results.report is None:
        raise typer.Exit(2)
    return results.flagged


def _document(flagged: Flagged, manifests: Mapping[str, str], show: int) -> dict[str, Any]:
    outcomes = flagged.flags.outcomes
    top = flagged if len(flagged) else flagged.top(max(show, 1))
    return {
        "rule": flagged.flags.rule.as_dict(),
        "answer": [one.headline for one in outcomes.values()],
        "flagged": len(flagged),
        "decisions": {name: one.as_json(flagged.pair_ids) for name, one in outcomes.items()},
        "manifests": dict(manifests),
        "sources": [row.as_json() for row in flagged.sources()],
        "top": [asdict(pair) for pair, _ in zip(top.flags, range(show), strict=False)],
    }


def _heard(
    flagged: Flagged, auditor: DataAuditor | None, witness: WitnessConfig | None, out: Output
) -> Witnessed | None:
    """What the second witness says; None where nobody asked, or no probe has a description."""
    told = [probe.name for probe in flagged.audit.probes if probe.description]
    if witness is None or witness.witness == "none" or not told:
        return None
    if auditor is None:
        from trl_attribution.audit.witness import Witnessed

        why = "needs a model that one process holds whole: run the audit again without --merge and without a launcher"
        return Witnessed((), dict.fromkeys(told, why))
    with out.progress() as progress:
        return auditor.witness(flagged, witness.witness, on_progress=progress)


def _compute_share(
    auditor: DataAuditor, dataset: str, output: Path, share: Share, vectors: Path | None, out: Output
) -> None:
    with out.progress() as progress:
        report = auditor.audit_share(dataset, output, share, vectors=vectors, on_progress=progress)
    out.show(
        f"Shard {report.share}: {counted(report.computed, 'pair')} computed. Run --merge once all shards are done."
    )
    out.document({"shard": report.to_json()})


def _dry_run(auditor: DataAuditor, dataset: str, out: Output) -> None:
    from trl_attribution.report import terminal

    out.say("Reading the dataset and running a sample")
    found = auditor.estimate(dataset)
    out.show(terminal.estimate_table(found))
    out.document({"estimate": found.to_json()})
