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
    script: str = ""
    """Run before that."""
    settings: dict[str, Any] = field(default_factory=dict)


PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True}
VIEWS = (
    View("report-answer", "answer"),
    View("report-scores", "scores", settings={"viewport": {"width": 1400, "height": 560}}),
    View("report-pairs", "pairs", keys="ffknnxp"),
    View("report-dark", "pairs", keys="ffknnxp", settings={"color_scheme": "dark"}),
    View(
        "report-review",
        "review",
        keys="ffkfxffkfffkff",
        script="page.find('sort').value = 'random'; browser.filter(); page.find('precision').open = true",
        settings={"viewport": {"width": 1400, "height": 620}},
    ),
    View(
        "report-bulk",
        "pairs",
        keys="fkb",
        script="page.find('by-source').selectedIndex = 1; browser.filter()",
        settings={"viewport": {"width": 1400, "height": 760}},
    ),
    View("report-teaches", "teaches", settings={"viewport": {"width": 1400, "height": 1000}}),
    View("report-discovery", "discovery", settings={"viewport": {"width": 1400, "height": 1240}}),
    View("report-cluster", "found-0-0", settings={"viewport": {"width": 1400, "height": 980}}),
    View("report-phone", "pairs", settings=PHONE),
)


def main(report: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with browser() as opened:
        for view in VIEWS:
            with context(opened, **{"viewport": {"width": 1400, "height": 900}, **view.settings}) as profile:
                page = visit(profile, report).page
                if not page.locator(f"#{view.section}").count():
                    print(f"{view.name}: the report has no #{view.section}")
                    continue
                page.evaluate("document.documentElement.style.scrollBehavior = 'auto'")
                page.evaluate(f"() => {{ {view.script} }}")
                for key in view.keys:
                    page.keyboard.press(key)
                page.wait_for_timeout(300)
                page.evaluate("(id) => document.getElementById(id).scrollIntoView()", view.section)
                page.wait_for_timeout(200)
                page.screenshot(path=folder / f"{view.name}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
