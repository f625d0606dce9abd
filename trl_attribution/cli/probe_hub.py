"""``trl-attribution probe push`` and ``pull``: probes on a hub."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from trl_attribution.cli import options
from trl_attribution.cli.output import Output, verb

RepositoryId = Annotated[str, typer.Argument(metavar="OWNER/NAME", help="A model repository on the Hub.")]


@verb
def push(
    name: Annotated[str, typer.Argument(help="Name of the probe.")],
    repository: RepositoryId,
    probes: options.Registry = Path("probes"),
    overwrite: options.Overwrite = False,
    public: Annotated[bool, typer.Option("--public", help="Let everybody read it.")] = False,
    *,
    out: Output,
) -> None:
    """Upload a probe with a card: model, layer, how well it tells. Private unless --public; several may share one."""
    from trl_attribution.probes import ProbeRegistry
    from trl_attribution.probes.hub import push_probe

    probe = ProbeRegistry(probes).load(name)
    pushed = push_probe(probe, repository, private=not public, overwrite=overwrite)
    out.show(Text(f"pushed to {pushed.url} ({'private' if pushed.private else 'public'})"))
    out.document(asdict(pushed))


@verb
def pull(
    repository: RepositoryId,
    name: Annotated[str | None, typer.Argument(help="Name of the probe; left out: all of them.")] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="Commit, branch or tag.")] = None,
    probes: options.OwnRegistry = Path("probes"),
    overwrite: options.Overwrite = False,
    *,
    out: Output,
) -> None:
    """Fetch a repository's probes into a registry; nothing in their files is run."""
    from trl_attribution.probes import ProbeRegistry
    from trl_attribution.probes.hub import pull_probes
    from trl_attribution.report import terminal

    found = pull_probes(repository, ProbeRegistry(probes), name, revision=revision, overwrite=overwrite)
    out.show(terminal.probes_table(found), Text(f"Saved in {probes}"))
    out.document({"registry": str(probes), "probes": [one.name for one in found]})
