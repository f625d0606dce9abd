"""``trl-attribution compare``: the audit's ranking and those of baselines, side by side."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Annotated

import typer

from trl_attribution.activations.config import ActivationConfig
from trl_attribution.behaviors.chat_completions import EndpointConfig
from trl_attribution.cli import options, paths
from trl_attribution.cli.output import Output, verb
from trl_attribution.cli.settings import Only, Without
from trl_attribution.errors import SettingsError
from trl_attribution.lenses.config import SaeConfig
from trl_attribution.models.config import LoadConfig

DEFAULT = ("random", "length")


@verb
def compare(
    context: typer.Context,
    audit: Annotated[Path, typer.Argument(help="The folder of a finished audit with scores."), paths.AUDIT],
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            "--baseline",
            "-b",
            help="random[:SEED], length, length-chosen, margin, margin-per-token, text, text-contextual, "
            "sentence:MODEL, sentence-contextual:MODEL, sae, gradient, endpoint:URL#MODEL[#QUESTION] or "
            "scores:FILE; can be repeated. Default: random and length.",
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option("--dataset", help="The audited dataset; default: where the audit found it."),
        paths.DATASET,
    ] = None,
    truth_column: Annotated[
        str | None, typer.Option("--truth-column", help="Column that marks the pairs that should rank high.")
    ] = None,
    truth_value: Annotated[
        list[str] | None,
        typer.Option("--truth-value", help="What a marked pair has there; can be repeated. Default: 1, true or yes."),
    ] = None,
    k: Annotated[
        int | None,
        typer.Option("--top-k", "-k", help="How many top pairs count. Default: as many as are marked, or flagged."),
    ] = None,
    probe: Annotated[str | None, typer.Option("--probe", help="Which probe's scores, where there are several.")] = None,
    layer: Annotated[int | None, typer.Option("--layer", help="Which layer's, where there are several.")] = None,
    behavior: Annotated[
        Path | None,
        typer.Option("--behavior", help="Behavior file, for the text, sentence, sae and gradient baselines."),
        paths.PROMPTS,
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="M0, for margin, sae and gradient; default: as the audit names it."),
        paths.MODEL,
    ] = None,
    sae: options.Sae = None,
    bergson: Annotated[
        str | None, typer.Option("--bergson", metavar="PYTHON", help="An interpreter that has bergson, for gradient.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for comparison.json and the scores; default: AUDIT/comparison."),
        paths.A_FOLDER,
    ] = None,
    *,
    fitting: Annotated[SaeConfig, Without("sae")],
    endpoint: Annotated[EndpointConfig, Only("api_key_env", "max_calls")],
    computing: Annotated[ActivationConfig, Only("token_budget")] = options.NO_LAYERS,
    loading: Annotated[LoadConfig, Without("adapter", "quantization")],
    out: Output,
) -> None:
    """Rank the pairs of AUDIT in other ways too: quality where the truth is known, agreement where not, and cost.

    Scores are kept, so that a second run computes only what is new, and a killed one goes on.
    """
    from trl_attribution.audit.saved import load_m0
    from trl_attribution.evidence.baselines import Audited, BaselineConfig, TruthConfig, parse_baseline
    from trl_attribution.evidence.baselines import compare as compare_rankings
    from trl_attribution.evidence.baselines.table import comparison_table

    options.refuse_idle(context, {"sae": options.SAE_OPTIONS}, () if sae is None else ("sae",))
    if truth_value and truth_column is None:
        raise SettingsError("--truth-value: say in which column with --truth-column")
    audited = Audited.open(audit, probe, layer)
    folder = output or audit / "comparison"
    settings = BaselineConfig(
        m0=cache(partial(load_m0, audited.info, loading, model)),
        model_digest=audited.info.model.digest,
        encoding=audited.info.encoding,
        behavior=behavior,
        token_budget=computing.token_budget,
        sae=None if sae is None else replace(fitting, sae=sae),
        bergson=bergson,
        endpoint=endpoint,
        dtype=loading.dtype,
        device=loading.device,
        trust_remote_code=loading.trust_remote_code,
    )
    baselines = [parse_baseline(name, settings) for name in baseline or DEFAULT]
    with out.progress() as progress:
        found = compare_rankings(
            audited,
            dataset or audited.info.dataset.found_at,
            baselines,
            k=k,
            truth=TruthConfig(truth_column, tuple(truth_value or ())) if truth_column is not None else None,
            keep=folder,
            on_progress=progress,
        )
    found.save(folder / "comparison.json")
    out.show(comparison_table(found), f"written: {folder / 'comparison.json'}")
    out.document(found.to_json())
