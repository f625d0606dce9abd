"""``trl-attribution scan``: what would this dataset teach? No file to write, before anything is trained."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from trl_attribution.audit.config import AuditConfig
from trl_attribution.behaviors.sampling import SamplingConfig
from trl_attribution.cli import options, paths
from trl_attribution.cli.output import Output, verb
from trl_attribution.cli.settings import Only, Without
from trl_attribution.discovery.scan_config import ScanConfig
from trl_attribution.lenses.config import SaeConfig
from trl_attribution.models.config import LoadConfig
from trl_attribution.utils.text import shell_command


@verb
def scan(
    context: typer.Context,
    model: options.GivenModel,
    dataset: options.GivenDataset,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The audit folder to make or go on with."), paths.A_FOLDER
    ] = Path("audit"),
    show: Annotated[int, typer.Option("--show", min=0, help="How many findings to print.")] = 12,
    show_traits: Annotated[
        bool, typer.Option("--show-traits", help="Print how well the model tells each trait.")
    ] = False,
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", help="JSONL with held-out prompts: compare what training changed."),
        paths.PROMPTS,
    ] = None,
    after: Annotated[
        str | None,
        typer.Option("--after", help="M1, to sample responses from. Without: those that the training run kept."),
        paths.MODEL,
    ] = None,
    responses: Annotated[
        Path | None,
        typer.Option("--responses", help="JSONL with prompt, before and after (texts or lists): the same."),
        paths.PROMPTS,
    ] = None,
    prompt_format: options.PromptFormat = "auto",
    sae: options.Sae = None,
    *,
    fitting: Annotated[SaeConfig, Without("sae")],
    looking: ScanConfig,
    sampling: Annotated[SamplingConfig, Only("n", "max_new_tokens", "temperature")] = options.ONE_RESPONSE,
    settings: Annotated[AuditConfig, Without("layers", "score")],
    out: Output,
) -> None:
    """Tell what DATASET would teach MODEL, most certain first: traits, where, in how many pairs, from which source.

    Every pair's vector is compared with traits that ship with the package (harmful ones and style), over the whole
    dataset, by source and by topic. What is told is beyond what random labels would show. The vectors are those of an
    audit: `audit -o` the same folder goes on with them. report.html tells it to people.

    With held-out prompts, what is predicted of every trait is compared with what training did: M0's and M1's responses,
    both read by M0. With --sae, the latents that chosen responses raise over rejected ones are told beside the traits.
    """
    from trl_attribution.audit.auditor import DataAuditor
    from trl_attribution.discovery import answered_changes, read_changes
    from trl_attribution.discovery.traits.trait import read_traits
    from trl_attribution.models import load_model
    from trl_attribution.report.latents import latents_view
    from trl_attribution.report.page import write_scan_report
    from trl_attribution.report.prediction import prediction_view
    from trl_attribution.report.scan import scan_view, traits_table

    options.refuse_ranks("scan")
    options.refuse_idle(context, {"sae": (*options.SAE_OPTIONS, "sae_pairs")}, () if sae is None else ("sae",))
    options.check_responses(prompts, responses, after)
    read_traits(looking.traits)  # a wrong name is said before M0 is loaded
    out.say(f"Loading {model}")
    auditor = DataAuditor(model, config=settings)
    how: Any = prompt_format  # checked where it is used
    with out.progress() as progress:
        changes = read_changes(responses) if responses is not None else None
        if prompts is not None:
            same = {one.name: getattr(settings, one.name) for one in fields(LoadConfig)}
            if after is not None:
                out.say(f"Loading {after}")
            m1 = None if after is None else load_model(after, **{**same, "adapter": None, "quantization": None})
            kept = output / "prediction"
            changes = answered_changes(prompts, output, kept, auditor.model, m1, sampling, how, progress)
        found = auditor.scan(
            dataset,
            output,
            changes=changes,
            prompt_format=how,
            sae=None if sae is None else replace(fitting, sae=sae),
            results=False,
            on_progress=progress,
            **vars(looking),
        )
    if show_traits:
        out.show(traits_table(found.traits), "")
    out.show(*scan_view(found, output, dataset, show).renderables)  # each by itself: commands stay in one piece
    if found.latents is not None:
        out.show(latents_view(found.latents, show, found.examples))
    if found.prediction is not None and changes is not None:
        out.show(prediction_view(found.prediction, show))
    out.show(Text(f"findings: {output / 'findings.json'}"))
    written = write_scan_report(output)
    if written is None:
        command = shell_command("trl-attribution", "report", output) or "the verb report"
        out.show(Text(f"report: `{command}` shows them beside what the audit there flags"))
    else:
        out.show(Text(f"report: {written.path}"))
    told = {"audit": str(output), "report": None if written is None else str(written.path)}
    out.document({**told, **found.model_dump(mode="json")})
