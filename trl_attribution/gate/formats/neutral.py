"""Hostile text made harmless for each place a verdict is shown: terminals, CI logs, XML, SARIF, URIs."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from urllib.parse import quote

from trl_attribution.utils.text import printable

TEXT_LIMIT = 300
"""Most characters of a dataset text, a path or a name in any output."""
SENTENCE_LIMIT = 2000
"""Most characters of a sentence of our own, which may quote such texts."""

# Runners look for commands in all that a step prints: GitHub for ::name:: at the start of a line (after blanks, and
# wrapping can put any word there) and for ##[name] anywhere, Azure for ##vso[...], TeamCity for ##teamcity[...].
_BRACKET_COMMAND = re.compile(r"##(?=[\w-]*\[)")
# Code points that XML 1.0 has no way to write; printable() has escaped the control characters and surrogates before.
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_PLACEHOLDER = re.compile(r"\{(\d+)\}")


def visible(text: object, limit: int = TEXT_LIMIT) -> str:
    r"""``text`` on one line of printable characters that no CI runner takes for a command.

    >>> visible("a\n::error::b ##[add-mask]c")
    'a :\\x3aerror:\\x3ab #\\x23[add-mask]c'
    """
    return _BRACKET_COMMAND.sub(r"#\\x23", printable(text, limit).replace("::", r":\x3a"))


def sentence(text: object) -> str:
    """As :func:`visible`, with room for a sentence that quotes several texts."""
    return visible(text, SENTENCE_LIMIT)


def xml(text: str) -> str:
    """``text``, made visible before, without the code points that XML 1.0 cannot hold; the writer escapes the rest."""
    return _NOT_XML.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def sarif(text: object, limit: int = SENTENCE_LIMIT) -> str:
    """``text`` for a SARIF message: brackets (links) and ``{0}`` (placeholders) mean themselves."""
    escaped = re.sub(r"[\\\[\]]", r"\\\g<0>", visible(text, limit))
    return _PLACEHOLDER.sub(r"{{\1}}", escaped)


def github_data(text: str) -> str:
    """What stands behind the second ``::`` of a GitHub workflow command; its line breaks are kept."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def github_property(text: str) -> str:
    """The value of a property of a GitHub workflow command."""
    return github_data(text).replace(":", "%3A").replace(",", "%2C")


def inner_path(file: str | None) -> str | None:
    """``file`` if it is a plain relative path that stays in its folder and is all visible, else None."""
    if file is None or visible(file, 4000) != file or "\\" in file or file.startswith("-"):
        return None
    path = PurePosixPath(file)
    return None if path.is_absolute() or ".." in path.parts or path == PurePosixPath() else str(path)


def uri(path: str) -> str:
    """A relative path as a relative URI reference; a colon in it never makes a scheme."""
    return quote(path, safe="/")
