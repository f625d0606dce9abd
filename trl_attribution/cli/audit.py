"""``trl-attribution audit``: vectors, scores, flags and manifests for a dataset."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from trl_attribution.cli import options
from trl_attribution.cli.output import Output, verb
from trl_attribution.errors import SettingsError

if TYPE_CHECKING:
    from trl_attribution.audit.auditor import DataAuditor
    from trl_attribution.audit.folder import Audit, Flagged
    from trl_attribution.audit.shares import Share
    from trl_attribution.scoring import Rule
    from trl_attribution.utils.distributed import Ranks

DEFAULT_FDR = 0.05


@verb
def audit(
    model: Annotated[str, typer.Argument(help="M0: a Hub id, a local folder, or a GGUF file.")],
    dataset: Annotated[
        str, typer.Argument(help="A Hub id, a JSONL / Parquet / CSV file (gzip too), or a folder; see Formats.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The audit folder to make or go on with.")
    ] = None,
    probes: Annotated[Path | None, typer.Option("--probes", help="Folder of probes to score against.")] = None,
    probe: Annotated[list[str] | None, typer.Option("--probe", help="Only this probe; can be repeated.")] = None,
    layer: Annotated[
        list[int] | None, typer.Option("--layer", help="A layer to compute; can be repeated. Default: the probes'.")
    ] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", help="Flag the k pairs that rank highest.")] = None,
    threshold: Annotated[float | None, typer.Option("--threshold", help="Flag pairs that score at least this.")] = None,
    fdr: Annotated[
        float | None,
        typer.Option("--fdr", help=f"Flag at this false discovery rate. With no rule given: {DEFAULT_FDR}."),
    ] = None,
    recall: Annotated[
        float | None,
        typer.Option(
            "--recall",
            help="Flag what would catch this share of pairs like the probe's examples, such as 0.9, and estimate how "
            "many pairs push towards the behavior; nothing where that may be none.",
        ),
    ] = None,
    score: options.Score = "auto",
    vectors: Annotated[
        Path | None, typer.Option("--vectors", help="A vector store to share between audits; default: OUTPUT/vectors.")
    ] = None,
    vector_dtype: Annotated[
        str, typer.Option("--vector-dtype", help="How vectors are stored: float16, bfloat16 or float32.")
    ] = "float16",
    shard_size: Annotated[int, typer.Option("--shard-size", help="Pairs a shard: what a killed run loses.")] = 512,
    show: Annotated[int, typer.Option("--show", min=0, help="How many suspicious pairs to print.")] = 10,
    shard: Annotated[
        str | None,
        typer.Option("--shard", metavar="I/N", help="Compute only the I-th of N shares, without scores; see --merge."),
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Finish an audit whose N shares were computed with --shard.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read the data, run a sample, print what to expect; write nothing.")
    ] = False,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    max_length: options.MaxLength = "1024",
    truncation_mode: options.TruncationMode = "keep_start",
    token_budget: options.TokenBudget = None,
    path: options.ForwardPath = "auto",
    blocks_path: options.BlocksPath = None,
    trust_remote_code: options.TrustRemoteCode = False,
    prompt_column: options.PromptColumn = "prompt",
    chosen_column: options.ChosenColumn = "chosen",
    rejected_column: options.RejectedColumn = "rejected",
    source_column: options.SourceColumn = "source",
    format: options.Format = "auto",  # noqa: A002  # the option's name
    split: options.Split = None,
    on_bad_row: options.OnBadRow = "error",
    config: options.ConfigFile = None,  # noqa: ARG001  # read before the other options
    quiet: options.Quiet = False,
    as_json: options.Json = False,
    debug: options.Debug = False,  # noqa: ARG001  # acted on by @verb
) -> None:
    """Audit DATASET: which pairs push MODEL towards the behaviors of the probes.

    Writes vectors, scores.parquet and two manifests into the audit folder. Run it again after a kill and it goes on
    where it was; run it with another rule and only the flags are made anew. Several processes share the work under a
    launcher (accelerate launch -m trl_attribution.cli audit ...) or as jobs of their own (--shard and --merge).
    """
    from trl_attribution.audit.auditor import DataAuditor
    from trl_attribution.audit.config import AuditConfig
    from trl_attribution.audit.shares import Share
    from trl_attribution.pairs import Encoding, Reading
    from trl_attribution.probes import ProbeRegistry
    from trl_attribution.utils.distributed import current_ranks

    if output is None and not dry_run:
        raise SettingsError("--output: say where the audit goes (-o audit/), or use --dry-run")
    if (shard is not None) + merge + dry_run > 1:
        raise SettingsError("--shard, --merge and --dry-run: give one of them")
    given = options.chosen(top_k=top_k, threshold=threshold, fdr=fdr, recall=recall)
    idle = {**options.chosen(probe=probe or None), **given} if probes is None else {}
    if idle:
        named = next(iter(idle)).replace("_", "-")
        raise SettingsError(
            f"--{named}: without --probes nothing is scored. Give the folder of probes, or leave it out."
        )
    rule = _rule(given)
    share = Share.parse(shard) if shard is not None else None
    out = Output(quiet, as_json)
    reading = Reading(prompt_column, chosen_column, rejected_column, source_column, format, split, on_bad_row)
    settings = AuditConfig(
        layers=tuple(layer) if layer else None,
        dtype=dtype,
        device=device,
        vector_dtype=vector_dtype,
        encoding=Encoding(options.parse_max_length(max_length), truncation_mode),
        reading=reading,
        score=score,  # type: ignore[arg-type]  # checked by AuditConfig
        token_budget=token_budget,
        path=path,  # type: ignore[arg-type]  # checked by AuditConfig
        blocks_path=blocks_path,
        shard_size=shard_size,
        trust_remote_code=trust_remote_code,
    )
    ranks = current_ranks()
    with ranks.together():
        chosen = ProbeRegistry(probes).load_all(probe or None) if probes is not None else None
        rule.check_probes(chosen or [])
        auditor = DataAuditor(model, probes=chosen, config=settings, ranks=ranks)
    if dry_run or merge:
        _refuse_ranks(ranks, "--dry-run" if dry_run else "--merge")
    if dry_run:
        _dry_run(auditor, dataset, out)
        return
    assert output is not None  # checked above
    if share is not None:
        _compute_share(auditor, dataset, output, share, vectors, out)
        return
    if not merge:
        out.say(f"Loading {model}")
    with out.progress() as progress:
        finish = auditor.merge if merge else auditor.audit
        found = finish(dataset, output, vectors=vectors, rule=rule, on_progress=progress)
    if found.is_main:
        finish_audit(found, dataset, rule, show, out)


def finish_audit(found: Audit, dataset: str | Path, rule: Rule, show: int, out: Output) -> Flagged | None:
    """Flag, write both manifests and the report, and show the result; None for an audit without probes."""
    from trl_attribution.report import terminal
    from trl_attribution.report.page import write_report
    from trl_attribution.report.texts import ListedPairs

    listed = ListedPairs(found.source if found.source is not None else dataset, found.reading)
    out.show(terminal.audit_summary(found))
    if found.scores is None:
        report = write_report(found.folder, listed)
        out.show("No probes were given: vectors are stored, nothing is scored.")
        out.document({"audit": str(found.folder), "info": asdict(found.info), "report": str(report.path)})
        return None
    flagged = found.flag(**rule.as_dict())  # type: ignore[arg-type]  # top_k is whole
    manifests = flagged.save_manifests()
    report = write_report(found.folder, listed, probes=found.probes)
    sources = flagged.sources()
    # Where nothing is evidence of a behavior, the pairs that would be flagged first are worth a look all the same.
    suspicious = (
        flagged if len(flagged) or rule.recall is None else found.flag(top_k=min(max(1, show), len(found.index)))
    )
    shown = min(show, len(suspicious))
    if shown:
        first = zip(suspicious.flags.pair_ids[:shown], suspicious.flags.positions[:shown], strict=True)
        texts = listed.at({pair_id: int(found.index.rows[position]) for pair_id, position in first})
        out.show("", terminal.top_pairs_table(suspicious, texts, shown, len(flagged)))
    out.show("", terminal.sources_table(sources), "", terminal.flagged_summary(flagged, manifests))
    out.show(Text(f"report: {report.path}"))
    out.document(
        {
            "audit": str(found.folder),
            "info": asdict(found.info),
            "rule": rule.as_dict(),
            "flagged": len(flagged),
            "manifests": manifests,
            "report": str(report.path),
            "sources": [row.as_json() for row in sources],
            "top": [asdict(pair) for pair, _ in zip(suspicious.flags, range(show), strict=False)],
            "decisions": {name: one.as_json() for name, one in flagged.flags.decisions.items()},
        }
    )
    return flagged


def _rule(given: dict[str, Any]) -> Rule:
    """The one rule that was given, checked before hours of work rather than after."""
    from trl_attribution.scoring import Rule

    return Rule(**(given or {"fdr": DEFAULT_FDR}))


def _compute_share(
    auditor: DataAuditor, dataset: str, output: Path, share: Share, vectors: Path | None, out: Output
) -> None:
    with out.progress() as progress:
        report = auditor.audit_share(dataset, output, share, vectors=vectors, on_progress=progress)
    out.show(f"Shard {report.share}: {report.computed:,} pairs computed. Run --merge once all shards are done.")
    out.document({"shard": report.to_json()})


def _refuse_ranks(ranks: Ranks, option: str) -> None:
    if ranks.world > 1:
        raise SettingsError(f"{option}: runs on one process, but a launcher started {ranks.world}; run it without")


def _dry_run(auditor: DataAuditor, dataset: str, out: Output) -> None:
    from trl_attribution.report import terminal

    out.say("Reading the dataset and running a sample")
    found = auditor.estimate(dataset)
    out.show(terminal.estimate_table(found))
    out.document({"estimate": found.to_json()})
