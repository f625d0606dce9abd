"""The command line: thin Typer commands, one per verb; heavy imports wait until a verb runs."""

from __future__ import annotations

import io
import sys

import typer

from trl_attribution.cli.apply import apply
from trl_attribution.cli.audit import audit
from trl_attribution.cli.compare import compare
from trl_attribution.cli.demo import demo
from trl_attribution.cli.discover import discover
from trl_attribution.cli.gate import gate_app
from trl_attribution.cli.manifest import manifest_app
from trl_attribution.cli.organism import organism_app
from trl_attribution.cli.output import quieten_what_loads
from trl_attribution.cli.probe import probe_app
from trl_attribution.cli.probe_steer import steer
from trl_attribution.cli.report import report
from trl_attribution.cli.review import review
from trl_attribution.cli.scan import scan
from trl_attribution.cli.show import show
from trl_attribution.cli.validate import validate

app = typer.Typer(
    name="trl-attribution",
    help="Find the preference pairs that teach a model a behavior, and hand over a cleaned dataset.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(scan)
app.command()(audit)
probe_app.command()(steer)
app.add_typer(probe_app, name="probe")
app.add_typer(manifest_app, name="manifest")
app.command()(apply)
app.add_typer(gate_app, name="gate")
app.command()(report)
app.command()(show)
app.command()(review)
app.command()(discover)
app.command()(demo)
app.add_typer(organism_app, name="organism")
app.command()(compare)
app.command()(validate)


def main() -> None:
    """Entry point of the ``trl-attribution`` script."""
    quieten_what_loads()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # the name of a file need not be text
    app()


__all__ = ["app", "main"]
