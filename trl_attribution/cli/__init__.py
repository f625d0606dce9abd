"""The command line: thin Typer commands, one per verb; heavy imports wait until a verb runs."""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer

from trl_attribution.cli.apply import apply
from trl_attribution.cli.audit import audit
from trl_attribution.cli.compare import compare
from trl_attribution.cli.demo import demo
from trl_attribution.cli.discover import discover
from trl_attribution.cli.gate import gate_app
from trl_attribution.cli.manifest import manifest_app
from trl_attribution.cli.options import current_name
from trl_attribution.cli.organism import organism_app
from trl_attribution.cli.output import quieten_what_loads
from trl_attribution.cli.probe import probe_app
from trl_attribution.cli.probe_ask import ask
from trl_attribution.cli.probe_hub import pull, push
from trl_attribution.cli.probe_show import show as show_probe
from trl_attribution.cli.probe_steer import steer
from trl_attribution.cli.report import report
from trl_attribution.cli.review import review
from trl_attribution.cli.scan import scan
from trl_attribution.cli.show import show
from trl_attribution.cli.validate import validate
from trl_attribution.utils.version import __version__

app = typer.Typer(
    name="trl-attribution",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "token_normalize_func": current_name},
    rich_markup_mode=None,  # in boxes, 24 of 80 columns are left for what an option means
    pretty_exceptions_enable=False,
)


def _tell_version(asked: bool) -> None:
    if asked:
        typer.echo(f"trl-attribution {__version__}")
        raise typer.Exit


@app.callback()
def program(
    _version: Annotated[
        bool,
        typer.Option("--version", help="Say the version.", callback=_tell_version, is_eager=True),
    ] = False,
) -> None:
    """Find the preference pairs that teach a model a behavior, and hand over a cleaned dataset."""


app.command(short_help="What would this dataset teach? Without probes.")(scan)
app.command(short_help="Which pairs push towards the behaviors of your probes?")(audit)
probe_app.command("show", short_help="A probe, and the latents that it is made of.")(show_probe)
probe_app.command(short_help="What M0 does with a probe's direction added.")(steer)
probe_app.command(short_help="What an activation oracle says of a probe, cluster or pair.")(ask)
probe_app.command(short_help="Upload a probe to the Hub, with a card.")(push)
probe_app.command(short_help="Fetch probes from the Hub.")(pull)
app.add_typer(probe_app, name="probe", short_help="Build, list, show, calibrate, import and share probes.")
app.add_typer(manifest_app, name="manifest", short_help="Look at manifests; merge, subtract or cut them.")
app.command(short_help="Make the cleaned dataset from a manifest.")(apply)
app.add_typer(gate_app, name="gate", short_help="May this dataset land? A policy decides, for CI.")
app.command(short_help="Write an audit's report.html, or a section for a card.")(report)
app.command(short_help="Tell on a terminal what an audit found.")(show)
app.command(short_help="Decide pair by pair in the report, and keep it.")(review)
app.command(short_help="Find behaviors that nobody named.")(discover)
app.command(short_help="The whole story on an embedded model, in minutes.")(demo)
app.add_typer(organism_app, name="organism", short_help="Contaminated datasets with known answers.")
app.command(short_help="Rank the pairs in other ways too, side by side.")(compare)
app.command(short_help="Do these pairs cause it? Retrains to find out.")(validate)


def main() -> None:
    """Entry point of the ``trl-attribution`` script."""
    quieten_what_loads()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # the name of a file need not be text
    app()


__all__ = ["app", "main"]
