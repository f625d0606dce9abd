"""``trl-attribution validate``: does changing the flagged pairs take the behavior away, and changing others not?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trl_attribution.cli import paths
from trl_attribution.cli.output import Output, undecided, verb
from trl_attribution.errors import SettingsError
from trl_attribution.utils.text import counted

if TYPE_CHECKING:
    from trl_attribution.evidence.validation import Progressed, ValidationPlan, Validator


@verb
@undecided()
def validate(
    plan: Annotated[Path, typer.Argument(help="The plan, a YAML file; see the how-to page."), paths.PLAN],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the results; a killed run goes on there."), paths.A_FOLDER
    ],
    cells: Annotated[
        str | None,
        typer.Option("--cells", metavar="I/N", help="Run only the I-th of N shares of the cells; see --merge."),
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Train nothing: draw the conclusion from the cells that are done.")
    ] = False,
    from_: Annotated[
        list[Path] | None,
        typer.Option("--from", help="With --merge, a folder of another machine's cells; can be repeated."),
        paths.RESULTS,
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the plan and list its cells; load no model, write nothing.")
    ] = False,
    *,
    out: Output,
) -> None:
    """Test by retraining whether the top-ranked pairs cause a behavior, against random, bottom and matched controls.

    Exit code 0 if that is supported, 1 if it is not supported or undecided, 2 for bad input. With --cells and with
    --dry-run there is no answer yet, and 0 says that the work was done.
    """
    from trl_attribution.audit.shares import Share
    from trl_attribution.evidence.validation import load_plan, prepare_validation
    from trl_attribution.evidence.validation.document import save, to_json
    from trl_attribution.evidence.validation.tables import validation_tables

    if (cells is not None) + merge + dry_run > 1:
        raise SettingsError("--cells, --merge and --dry-run: give one of them")
    if from_ and not merge:
        raise SettingsError("--from: goes with --merge")
    share = Share.parse(cells) if cells is not None else None
    loaded = load_plan(plan)
    if dry_run:
        _list_cells(loaded, out)
        return
    with out.progress() as progress:
        validator = prepare_validation(loaded, output, progress, out.say)
        if merge:
            taken = validator.merge(from_ or [])
            out.say(f"{counted(taken, 'cell')} taken over")
        else:
            progressed = validator.run(share)
            if share is not None or progressed.missing:
                _unfinished(validator, progressed, share, out)
                return
    found = validator.finish()
    path = save(found)
    out.show(validation_tables(found))
    out.say(f"Written to {path}")
    out.document(to_json(found))
    raise typer.Exit(found.conclusion.exit_code)


def _unfinished(validator: Validator, progressed: Progressed, share: object, out: Output) -> None:
    """Say how far it is; where the whole plan was asked for, others still have cells in hand, and that is no answer."""
    missing = len(progressed.missing)
    out.show(f"{progressed.done} cells done now, {missing} of {len(validator.cells)} still missing.")
    if not missing:
        out.show("Run it again with --merge for the answer.")
    out.document(
        {
            "done_now": progressed.done,
            "cells": len(validator.cells),
            "missing": [cell.name for cell in progressed.missing],
            "in_other_hands": progressed.elsewhere,
        }
    )
    if share is None:
        raise typer.Exit(1)


def _list_cells(plan: ValidationPlan, out: Output) -> None:
    from rich.text import Text

    from trl_attribution.evidence.validation import cells
    from trl_attribution.evidence.validation.expected import expected_cost

    found = cells(plan)
    for number, cell in enumerate(found, start=1):
        out.show(f"{number:4}  {cell.condition.title}, seed {cell.seed}")
    trainings = sum(cell.condition.intervention != "m0" for cell in found)
    out.show(f"{counted(len(found), 'cell')}, {trainings} of them trainings.")
    cost = expected_cost(plan, trainings, len(found))
    if cost is not None:
        out.show("", *(Text(line) for line in cost.lines))
    out.document({"cells": [cell.name for cell in found], "expected": None if cost is None else cost.to_json()})
