"""A verdict in the formats that people, CI systems and code scanners read; the same verdict gives the same bytes."""

from __future__ import annotations

from collections.abc import Callable

from trl_attribution.errors import SettingsError
from trl_attribution.gate.formats.github import render_github
from trl_attribution.gate.formats.json_document import render_json
from trl_attribution.gate.formats.junit import render_junit
from trl_attribution.gate.formats.markdown import job_summary, render_markdown
from trl_attribution.gate.formats.sarif import render_sarif
from trl_attribution.gate.formats.terminal import render_text, terminal
from trl_attribution.gate.verdict import Verdict
from trl_attribution.utils.text import printable

_WIDTH = 100
_FORMATS: dict[str, Callable[[Verdict], str]] = {
    "json": render_json,
    "github": render_github,
    "junit": render_junit,
    "sarif": render_sarif,
    "markdown": render_markdown,
}
FORMATS = ("text", *_FORMATS)


def render(verdict: Verdict, name: str, width: int = _WIDTH) -> str:
    """The verdict in the format ``name``, ending in a newline.

    Args:
        verdict: what to render; the dataset texts in it may be hostile.
        name: one of :data:`FORMATS`.
        width: columns of the format ``text``, which alone wraps lines.

    Raises:
        SettingsError: there is no such format.
    """
    if name == "text":
        return render_text(verdict, width)
    if name not in _FORMATS:
        raise SettingsError(f"--format {printable(name)}: no such format. Choose from {', '.join(FORMATS)}.")
    return _FORMATS[name](verdict)


__all__ = ["FORMATS", "job_summary", "render", "terminal"]
