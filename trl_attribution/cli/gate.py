"""``trl-attribution gate``: a policy and a dataset in, a verdict out; and what it takes to write a policy."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from trl_attribution.cli import options, paths
from trl_attribution.cli.output import Output, undecided, verb
from trl_attribution.errors import AttributionError, SettingsError
from trl_attribution.utils.text import counted

if TYPE_CHECKING:
    import datetime

    from trl_attribution.gate.verdict import Verdict

_POLICY = Path("gate.yaml")
_JUDGE = "check"
_BASELINE = "gate-baseline.safetensors"
_MANY = ", and spread the computing with `trl-attribution audit --vectors`"

Format = Annotated[
    Literal["text", "json", "github", "junit", "sarif", "markdown"],
    typer.Option("--format", help="How the verdict is written."),
]
Policy = Annotated[Path, typer.Option("--policy", help="The policy; `gate init` writes one."), paths.POLICY]
Vectors = Annotated[
    Path | None,
    typer.Option("--vectors", help="An audit's folder or a vector store: pairs that it holds are not computed again."),
    paths.VECTORS,
]
Download = Annotated[bool, typer.Option("--download", help="Fetch probes that the policy names by hf://owner/repo.")]


class _Judging(TyperGroup):
    """``gate DATASET`` is ``gate check DATASET``; a dataset that is called like a command is given as ``./init``."""

    default_command = _JUDGE

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the command in where none is named."""
        if args and args[0] not in self.commands and args[0] not in self.get_help_option_names(ctx):
            args = [_JUDGE, *args]
        return super().parse_args(ctx, args)


gate_app = typer.Typer(
    cls=_Judging,
    help="Judge a dataset by a policy: `gate DATASET --policy gate.yaml` is short for `gate check`. "
    "Exit code 0: it passes. 1: it fails. 2: the gate cannot decide.",
    no_args_is_help=True,
)


@gate_app.command(_JUDGE)
@verb
def check(
    dataset: Annotated[
        str,
        typer.Argument(help="A JSONL / Parquet / CSV file (gzip too), a folder of such files, or a Hub id."),
        paths.DATASET,
    ],
    policy: Policy = _POLICY,
    base_ref: Annotated[
        str | None,
        typer.Option("--base-ref", metavar="REF", help="Judge only what was added or changed since REF (git)."),
    ] = None,
    format: Format = "text",  # noqa: A002  # the option's name
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FOLDER", help="Write verdict, reports, manifests and the cleaned dataset there."
        ),
        paths.Made(),
    ] = None,
    clean: Annotated[
        Literal["filter", "flip"],
        typer.Option("--clean", help="What the cleaned dataset has done to offending pairs."),
    ] = "filter",
    today: Annotated[
        str | None, typer.Option("--today", metavar="DATE", help="The day that allow entries are judged by; today.")
    ] = None,
    vectors: Vectors = None,
    download: Download = False,
    trust_remote_code: options.TrustRemoteCode = False,
    *,
    out: Output,
) -> None:
    """Judge DATASET by a policy; this is what `gate DATASET` does.

    Exit code 0: it passes. 1: it fails, the offending pairs are named. 2: the gate cannot decide, because something is
    missing, broken or unreadable.
    """
    from trl_attribution.gate.artifacts import check_output, write_artifacts
    from trl_attribution.gate.check import GateOptions, run_gate
    from trl_attribution.gate.policy.file import load_policy

    form = "json" if out.as_json else format
    if output is not None:
        check_output(output, dataset)
    out = replace(out, as_json=False)  # the verdict is the document
    with undecided():
        options.refuse_ranks("gate", _MANY)
        file = load_policy(policy)
        with out.progress() as progress:
            asked = GateOptions(_day(today), base_ref, download, trust_remote_code, vectors)
            run = run_gate(file, dataset, asked, progress)
        _show(run.verdict, form)
        if form == "github":
            _append_summary(run.verdict)
        if output is not None:
            written = write_artifacts(run, file, dataset, output, clean)
            what = "verdict and reports" if written.cleaned is None else f"verdict, reports, {written.cleaned}"
            out.say(f"Written to {output}: {what}")
    raise typer.Exit(run.verdict.exit_code)


@gate_app.command()
@verb
def init(
    output: Annotated[Path, typer.Option("--output", "-o", help="The policy to write."), paths.A_FILE] = _POLICY,
    probes: Annotated[
        Path, typer.Option("--probes", help="Registry whose probes get rules and pins."), paths.A_FOLDER
    ] = Path("probes"),
    model: Annotated[str | None, typer.Option("--model", help="M0, as the policy is to name it."), paths.MODEL] = None,
    trusted: Annotated[
        str | None,
        typer.Option("--from", metavar="TRUSTED", help="A dataset that is trusted: rules are proposed from it."),
        paths.DATASET,
    ] = None,
    vectors: Vectors = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a policy that is there.")] = False,
    trust_remote_code: options.TrustRemoteCode = False,
    *,
    out: Output,
) -> None:
    """Write a commented policy, with rules and pins for the probes of a registry.

    With --from, the rules are what the probes' own pairs and those of TRUSTED say, and its scores are kept beside the
    policy as the baseline (gate-baseline.safetensors): there is no number to fill in.
    """
    from trl_attribution.gate.policy.template import draft, policy_template
    from trl_attribution.probes import ProbeRegistry
    from trl_attribution.utils.atomic import atomic_path

    target = output.with_name(_BASELINE)
    for path, wanted in ((output, "file"), *([(target, "folder")] if trusted is not None else [])):
        if path.exists() and not overwrite:
            raise SettingsError(f"{path} is there already. Name another {wanted} with --output, or add --overwrite.")
    known = ProbeRegistry(probes)
    found = known.load_all() if probes.is_dir() and known.names() else []
    registry = Path(os.path.relpath(probes, output.parent)).as_posix()
    proposed = None
    if trusted is not None:
        from trl_attribution.gate.proposal import propose

        options.check_kept(target, trusted)
        with out.progress() as progress:
            proposed = propose(
                draft(model, registry, found, output.parent),
                trusted,
                target.name,
                vectors=vectors,
                trust_remote_code=trust_remote_code,
                on_progress=progress,
            )
        proposed.baseline.save(target)
    text = policy_template(model, registry, found, None if proposed is None else proposed.said)
    with atomic_path(output) as part:
        part.write_text(text, encoding="utf-8")
    for line in () if proposed is None else proposed.sentences:
        out.say(line)
    pinned = f"rules and pins for {counted(len(found), 'probe')}"
    told = pinned if found else f"no probes in {probes}: their rules are comments"
    out.say(f"Written to {output}: {told}")


@gate_app.command()
@verb
def baseline(
    dataset: Annotated[str, typer.Argument(help="The dataset that is trusted, as for `gate`."), paths.DATASET],
    policy: Policy = _POLICY,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The baseline to write; default: the one the policy names."),
        paths.A_FILE,
    ] = None,
    known_bad: Annotated[
        Path | None,
        typer.Option("--known-bad", help="Pairs known to be bad: a dataset of them, or a manifest of the audited one."),
        paths.DATASET,
    ] = None,
    vectors: Vectors = None,
    download: Download = False,
    trust_remote_code: options.TrustRemoteCode = False,
    *,
    out: Output,
) -> None:
    """Record what new pairs are compared with: DATASET's scores for the policy's probes."""
    from trl_attribution.gate.baseline.recording import record_baseline
    from trl_attribution.gate.policy.file import load_policy

    options.refuse_ranks("gate", _MANY)
    file = load_policy(policy)
    named = None if file.policy.baseline is None else file.path(file.policy.baseline)
    target = named if output is None else output
    if target is None:
        raise SettingsError(f"--output: say where the baseline goes, or name it in {policy} (baseline: FILE)")
    options.check_kept(target, dataset, policy, known_bad)
    with out.progress() as progress:
        found = record_baseline(
            file,
            dataset,
            known_bad,
            download=download,
            trust_remote_code=trust_remote_code,
            vectors=vectors,
            on_progress=progress,
        )
    found.save(target)
    probes = ", ".join(column.probe for column in found.columns)
    known = counted(len(found.known_bad_ids), "known-bad pair")
    out.show(f"{target}: {counted(found.origin.pairs, 'pair')} scored for {probes}; {known}")
    out.document(
        {
            "baseline": str(target),
            "pairs": found.origin.pairs,
            "known_bad": len(found.known_bad_ids),
            "probes": [column.probe for column in found.columns],
        }
    )


@gate_app.command()
@verb
def show(
    verdict: Annotated[
        Path, typer.Argument(help="verdict.json of an earlier run."), paths.Given("verdict", folder=False)
    ],
    format: Format = "text",  # noqa: A002  # the option's name
    *,
    out: Output,
) -> None:
    """Render a verdict that was written before in another format; always exits with 0."""
    from trl_attribution.gate.verdict import Verdict

    _show(Verdict.load(verdict), "json" if out.as_json else format)


@gate_app.command()
@verb
def schema(*, out: Output) -> None:  # noqa: ARG001  # every verb has its options
    """Print the JSON schema of a policy, for editors."""
    import json

    from trl_attribution.gate.policy.schema import policy_schema

    typer.echo(json.dumps(policy_schema(), indent=2))


def _show(verdict: Verdict, form: str) -> None:
    """The verdict on stdout: in color on a terminal, else as bytes that do not depend on it."""
    from rich.console import Console

    from trl_attribution.gate.formats import render, terminal

    if form == "text" and sys.stdout.isatty():
        Console().print(terminal(verdict))
        return
    sys.stdout.write(render(verdict, form))
    sys.stdout.flush()


def _append_summary(verdict: Verdict) -> None:
    """GitHub shows what is in this file on the job's page."""
    from trl_attribution.gate.formats import job_summary

    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if not path:
        return
    try:
        with Path(path).open("a", encoding="utf-8") as summary:
            summary.write(job_summary(verdict))
    except OSError as error:
        raise AttributionError(
            f"cannot write the job summary {path} (GITHUB_STEP_SUMMARY): {error.strerror or error}. Unset it."
        ) from error


def _day(text: str | None) -> datetime.date:
    import datetime

    if text is None:
        return datetime.datetime.now(tz=datetime.UTC).date()
    try:
        return datetime.date.fromisoformat(text)
    except ValueError:
        raise SettingsError(f"--today: {text!r} is no date such as 2026-12-31") from None
