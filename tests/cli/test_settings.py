"""A parameter of settings stands for an option for each of its fields."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest
import typer
from typer.testing import CliRunner

from trl_attribution.cli.settings import Only, with_options


@dataclass(frozen=True)
class Drawing:
    color: Literal["red", "blue"] = "red"
    """Of the line."""
    width: int | None = field(default=3, metadata={"option": "line_width"})
    """Of the line, too."""


@dataclass(frozen=True)
class Limit:
    most: int | None = None
    """Of all."""


THIN = Drawing(width=1)


def made(command: Any, *words: str) -> str:
    app = typer.Typer()
    app.command()(with_options(command))
    return CliRunner().invoke(app, list(words), catch_exceptions=False).stdout


def draw(*, drawing: Annotated[Drawing, Only("width")] = THIN, limit: Limit | None) -> None:
    print(drawing, limit)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), "Drawing(color='red', width=1) None"),
        (("--line-width", "none"), "Drawing(color='red', width=None) None"),
        (("--line-width", "2", "--most", "5"), "Drawing(color='red', width=2) Limit(most=5)"),
    ],
)
def test_a_command_gets_settings_of_its_defaults_and_of_what_was_given(words: tuple[str, ...], expected: str) -> None:
    assert made(draw, *words).strip() == expected


def test_settings_see_a_choice_themselves_and_what_has_no_option_is_unknown() -> None:
    def colored(*, drawing: Drawing) -> None:
        print(drawing.color)

    assert made(colored, "--color", "green") == "green\n"
    assert made(draw, "--color", "red") == ""
