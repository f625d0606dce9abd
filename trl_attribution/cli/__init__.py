"""The command line: thin Typer commands, one per verb; heavy imports wait until a verb runs."""

from __future__ import annotations

import typer

from trl_attribution.cli.apply import apply
from trl_attribution.cli.audit import audit
from trl_attribution.cli.demo import demo
from trl_attribution.cli.probe import probe_app

app = typer.Typer(
    name="trl-attribution",
    help="Find the preference pairs that teach a model a behavior, and hand over a cleaned dataset.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(audit)
app.add_typer(probe_app, name="probe")
app.command()(apply)
app.command()(demo)


def main() -> None:
    """Entry point of the ``trl-attribution`` script."""
    app()


__all__ = ["app", "main"]
