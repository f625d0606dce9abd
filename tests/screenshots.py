"""Pictures of a report's main views for the documentation: ``python -m tests.screenshots REPORT.html FOLDER``."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.browser import browser, context, visit


@dataclass(frozen=True)
class View:
    """One picture."""

    name: str
    section: str
    keys: str = ""
    """Pressed before the picture is taken."""
    settings: dict[str, Any] = field(default_factory=dict)


PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True}
VIEWS = (
    View("report-answer", "answer"),
    View("report-scores", "scores", settings={"viewport": {"width": 1400, "height": 560}}),
    View("report-pairs", "pairs", keys="ffknnxp"),
    View("report-dark", "pairs", keys="ffknnxp", settings={"color_scheme": "dark"}),
    View("report-review", "review", keys="ffkfxffkfffkff", settings={"viewport": {"width": 1400, "height": 620}}),
    View("report-phone", "pairs", settings=PHONE),
)


def main(report: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with browser() as opened:
        for view in VIEWS:
            with context(opened, **{"viewport": {"width": 1400, "height": 900}, **view.settings}) as profile:
                page = visit(profile, report).page
                page.evaluate("document.documentElement.style.scrollBehavior = 'auto'")
                if view.name == "report-review":
                    page.select_option("#sort", "random")
                    page.evaluate("document.getElementById('precision').open = true")
                for key in view.keys:
                    page.keyboard.press(key)
                page.wait_for_timeout(300)
                page.evaluate("(id) => document.getElementById(id).scrollIntoView()", view.section)
                page.wait_for_timeout(200)
                page.screenshot(path=folder / f"{view.name}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
