"""``trl-attribution discover``: behaviors that nobody named, in the change of a model or in the pairs alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trl_attribution.activations.config import ActivationConfig
from trl_attribution.behaviors.sampling import SamplingConfig
from trl_attribution.cli import options, paths
from trl_attribution.cli.output import Output, verb
from trl_attribution.cli.settings import Only, Without
from trl_attribution.discovery.config import DiscoveryConfig
from trl_attribution.errors import SettingsError
from trl_attribution.models.config import LoadConfig

if TYPE_CHECKING:
    from trl_attribution.behaviors.encoding import PromptFormat
    from trl_attribution.discovery import AuditedPairs, Change, ChangeVectors, StoredDiscovery
    from trl_attribution.discovery.audited import ReadPairs
    from trl_attribution.discovery.run import Namer
    from trl_attribution.models import LoadedModel
    from trl_attribution.utils.progress import OnProgress


@verb
def discover(
    audit: Annotated[Path, typer.Argument(help="A finished audit folder; it needs no probes."), paths.AUDIT],
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", help="JSONL with prompts, a few hundred to 10,000; without, the pairs alone."),
        paths.PROMPTS,
    ] = None,
    responses: Annotated[
        Path | None,
        typer.Option(
            "--responses", help="JSONL with prompt, before and after (texts or lists), in place of --prompts."
        ),
        paths.PROMPTS,
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="M0, which reads the responses; default: the model of the audit."),
        paths.MODEL,
    ] = None,
    after: Annotated[
        str | None,
        typer.Option("--after", help="M1, to sample responses from. Without: those that the training run kept."),
        paths.MODEL,
    ] = None,
    register: Annotated[
        list[str] | None,
        typer.Option("--register", metavar="CLUSTER:NAME", help="Save a cluster found earlier as a probe; repeatable."),
    ] = None,
    probes: options.OwnRegistry = Path("probes"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a probe of the same name.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where results go; default: AUDIT/discovery."), paths.A_FOLDER
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option("--dataset", help="The audited dataset, for the pairs' texts; default: as audited."),
        replace(paths.DATASET, hint="The pairs' texts are read from it: give it, or do without (--no-texts)."),
    ] = None,
    no_texts: Annotated[
        bool, typer.Option("--no-texts", help="Do without the pairs' texts: no excerpts and no keywords of them.")
    ] = False,
    show: Annotated[int, typer.Option("--show", min=0, help="How many of them to print.")] = 3,
    name_endpoint: Annotated[
        str | None,
        typer.Option("--name-endpoint", metavar="URL#MODEL", help="OpenAI-compatible endpoint that names clusters."),
    ] = None,
    name_key_env: Annotated[
        str, typer.Option("--name-key-env", help="Environment variable with the endpoint's key.")
    ] = "",
    prompt_format: options.PromptFormat = "auto",
    *,
    settings: Annotated[DiscoveryConfig, Without("separation", "resamples", "exemplars", "map_pairs")],
    sampling: Annotated[SamplingConfig, Only("n", "max_new_tokens", "temperature")] = options.ONE_RESPONSE,
    computing: options.Computing = options.NO_LAYERS,
    loading: Annotated[LoadConfig, Without("adapter", "quantization")],
    out: Output,
) -> None:
    """Find behaviors that nobody named: in what changed on PROMPTS, or in what the pairs of AUDIT alone would teach.

    With prompts, behavior vectors are made of the responses before and after training, both read by M0, and clustered
    by their similarity with all pairs. Without, a sample of the pairs is clustered in their place. A cluster has to be
    tight, stable under resampling, and confirmed on a held-out half. --register turns one into a probe.
    """
    from trl_attribution.audit.info import AuditInfo
    from trl_attribution.audit.saved import load_m0
    from trl_attribution.discovery import AuditedPairs, discover_pairs, discover_prompts, read_changes
    from trl_attribution.models import load_model

    where = output if output is not None else audit / "discovery"
    _check_combination(prompts, responses, after, register)
    options.refuse_ranks("discover")

    def m0() -> LoadedModel:
        info = AuditInfo.load(audit)
        out.say(f"Loading {model or info.model.name}")
        return load_m0(info, loading, model)

    if register:
        _register(register, where, m0, probes, overwrite, computing.blocks_path, out)
        return
    namer = _namer(name_endpoint, name_key_env)
    pairs = AuditedPairs.open(audit, dataset)
    read = None if no_texts else _reader(pairs, dataset)
    with out.progress() as progress:
        if prompts is None and responses is None:
            found = discover_pairs(pairs, settings, read=read, namer=namer, on_progress=progress)
        else:
            asked = _Asked(
                pairs=pairs,
                m0=m0(),
                activations=replace(computing, layers=pairs.layers(settings.layers)),
                sampling=replace(sampling, seed=settings.seed),
                prompt_format=prompt_format,  # type: ignore[arg-type]  # checked where it is used
                progress=progress,
            )
            if responses is not None:
                changed = asked.vectors(read_changes(responses))
            else:
                if after is not None:
                    out.say(f"Loading {after}")
                m1 = None if after is None else load_model(after, **vars(loading))
                changed = asked.vectors(asked.answered(str(prompts), m1, where / "prompts"))
            found = discover_prompts(pairs, changed, settings, read=read, namer=namer, on_progress=progress)
    _finish(found, audit, where, show, out)


@dataclass(frozen=True)
class _Asked:
    """How the prompts' responses are had and read."""

    pairs: AuditedPairs
    m0: LoadedModel
    activations: ActivationConfig
    sampling: SamplingConfig
    prompt_format: PromptFormat
    progress: OnProgress

    def answered(self, prompts: str, m1: LoadedModel | None, folder: Path) -> tuple[Change, ...]:
        """Responses before and after: sampled into ``folder``, or those that the training run kept."""
        from trl_attribution.discovery import answered_changes

        return answered_changes(
            prompts, self.pairs.folder, folder, self.m0, m1, self.sampling, self.prompt_format, self.progress
        )

    def vectors(self, changes: Sequence[Change]) -> ChangeVectors:
        """The prompts' behavior vectors on M0."""
        from trl_attribution.discovery import change_vectors

        return change_vectors(
            changes,
            self.m0,
            self.activations,
            self.pairs.encoding,
            self.prompt_format,
            partial(self.progress, "Reading responses with M0"),
        )


def _check_combination(
    prompts: Path | None, responses: Path | None, after: str | None, register: Sequence[str] | None
) -> None:
    options.check_responses(prompts, responses, after)
    if register and (prompts is not None or responses is not None):
        raise SettingsError("--register takes clusters that were found earlier: leave --prompts and --responses out")


def _reader(pairs: AuditedPairs, dataset: str | None) -> ReadPairs:
    """Reads texts from the dataset, which is opened now: a wrong path must not show after the work is done."""
    from trl_attribution.errors import DataError
    from trl_attribution.pairs import PairReader
    from trl_attribution.pairs.lookup import pairs_at_rows

    name = dataset if dataset is not None else pairs.info.dataset.found_at
    try:
        PairReader(name, pairs.reading)
    except DataError as error:
        raise DataError(
            f"{error} The texts of pairs are read from the dataset: give it (--dataset), or do without (--no-texts)."
        ) from error
    return partial(pairs_at_rows, name, pairs.reading, own=pairs.info.own_responses(pairs.folder))


def _namer(endpoint: str | None, key_env: str) -> Namer | None:
    from trl_attribution.behaviors import EndpointConfig
    from trl_attribution.discovery import EndpointNames

    if endpoint is None:
        return None
    return EndpointNames(endpoint, EndpointConfig(key_env, parameters={"temperature": 0, "max_tokens": 40}))


def _finish(found: StoredDiscovery, audit: Path, where: Path, show: int, out: Output) -> None:
    from trl_attribution.report.discovery import discovery_view

    path = found.save(where / found.discovery.mode)
    out.show(discovery_view(found.discovery, show))
    out.say(f"Written: {path}")
    shown = f"trl-attribution report {audit}" + ("" if where == audit / "discovery" else f" --discovery {where}")
    out.say(f"To see it in the audit's page: {shown}")
    values = {name: value for name, value in found.discovery.to_json().items() if name not in ("map", "heatmap")}
    out.document({**values, "saved": str(path)})


def _register(
    asked: Sequence[str],
    where: Path,
    m0: Callable[[], LoadedModel],
    registry: Path,
    overwrite: bool,
    blocks_path: str | None,
    out: Output,
) -> None:
    from trl_attribution.discovery import StoredDiscovery, cluster_probe
    from trl_attribution.probes import ProbeRegistry
    from trl_attribution.report import terminal

    wanted = [one.partition(":")[::2] for one in asked]
    for cluster, name in wanted:
        if cluster[:1] not in ("b", "p") or not name:
            raise SettingsError(
                "--register: give CLUSTER:NAME, such as b1:praises-pizza, by the ids that discover printed"
            )
    probes = ProbeRegistry(registry)
    options.check_free(registry, [name for _, name in wanted], overwrite)
    folders = {cluster: where / ("prompts" if cluster[0] == "b" else "pairs") for cluster, _ in wanted}
    stored = {folder: StoredDiscovery.load(folder) for folder in dict.fromkeys(folders.values())}
    for cluster, _ in wanted:
        stored[folders[cluster]].discovery.of(cluster)  # before a model is loaded
    loaded = m0()
    built = [cluster_probe(stored[folders[cluster]], cluster, name, loaded, blocks_path) for cluster, name in wanted]
    saved = [probes.save(probe, overwrite=overwrite) for probe in built]
    for probe, folder in zip(built, saved, strict=True):
        out.show(terminal.probe_details(probe, []))
        out.say(f"Saved in {folder}")
    out.document(
        {
            "registered": [
                {"name": probe.name, "fingerprint": probe.fingerprint, "saved": str(folder)}
                for probe, folder in zip(built, saved, strict=True)
            ]
        }
    )
