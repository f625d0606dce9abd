"""A parameter of settings stands for an option for each of its fields."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest
import typer
from typer.testing import CliRunner

from trl_attribution.cli.settings import Only, with_options
from trl_attribution.errors import SettingsError


@dataclass(frozen=True)
class Drawing:
    color: Literal["red", "blue"] = "red"
    """Of the line."""
    width: int | None = field(default=3, metadata={"option": "line_width"})
    """Of the line, too."""
    dashes: tuple[float, ...] = (1.0, 0.5)
    """Of the line as well."""


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
        ((), "Drawing(color='red', width=1, dashes=(1.0, 0.5)) None"),
        (("--line-width", "none"), "Drawing(color='red', width=None, dashes=(1.0, 0.5)) None"),
        (("--line-width", "2", "--most", "5"), "Drawing(color='red', width=2, dashes=(1.0, 0.5)) Limit(most=5)"),
    ],
)
def test_a_command_gets_settings_of_its_defaults_and_of_what_was_given(words: tuple[str, ...], expected: str) -> None:
    assert made(draw, *words).strip() == expected


def test_settings_see_a_choice_themselves_and_what_has_no_option_is_unknown() -> None:
    def colored(*, drawing: Drawing) -> None:
        print(drawing.color)

    assert made(colored, "--color", "green") == "green\n"
    assert made(draw, "--color", "red") == ""


def test_numbers_are_separated_by_commas() -> None:
    def dashed(*, drawing: Drawing) -> None:
        print(drawing.dashes)

    assert made(dashed) == "(1.0, 0.5)\n"
    assert made(dashed, "--dashes", "2,-0.25") == "(2.0, -0.25)\n"
    with pytest.raises(SettingsError, match="--dashes: '1;2' is not a list of numbers"):
        made(dashed, "--dashes", "1;2")
