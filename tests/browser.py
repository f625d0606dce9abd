"""A real browser for tests of the page: Debian's Chromium, headless, driven by Playwright, without a network."""

from __future__ import annotations

import base64
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

# What a page must never do is written down by the page itself, before any of its own scripts run.
WATCH = """
window.__violations = [];
document.addEventListener("securitypolicyviolation", (event) =>
  window.__violations.push(`${event.violatedDirective} ${event.blockedURI} ${event.sample}`));
"""
_FLAGS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--hide-scrollbars", "--force-color-profile=srgb"]


def chromium() -> str:
    """The browser's path; the test is skipped where there is none."""
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no Chromium: install Debian's package `chromium`, or set CHROMIUM to its path")
    return path


@dataclass
class Seen:
    """What a page said while it was open."""

    page: Any
    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    @property
    def violations(self) -> list[str]:
        """Of its content security policy."""
        found: list[str] = self.page.evaluate("window.__violations")
        return found

    def assert_clean(self) -> None:
        """Nothing in the console, nothing against the policy, nothing asked of a network."""
        assert (self.console, self.violations) == ([], [])
        assert [url for url in self.requests if not url.startswith(("file:", "blob:", "http://127.0.0.1:"))] == []


@contextmanager
def browser() -> Iterator[Any]:
    """A Playwright browser."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make venv")
    path = chromium()
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=path, args=_FLAGS)
        yield opened
        opened.close()


@contextmanager
def context(opened: Any, **settings: Any) -> Iterator[Any]:
    """A profile of its own, with its own storage; 1400 x 1000 unless asked otherwise."""
    made = opened.new_context(**{"viewport": {"width": 1400, "height": 1000}, "accept_downloads": True, **settings})
    made.add_init_script(WATCH)
    made.set_default_timeout(10_000)
    yield made
    made.close()


def visit(profile: Any, where: Path | str) -> Seen:
    """Open a page and wait until its list and charts are drawn."""
    seen = Seen(profile.new_page())
    seen.page.on("console", lambda message: seen.console.append(f"{message.type}: {message.text}"))
    seen.page.on("pageerror", lambda error: seen.console.append(f"error: {error}"))
    seen.page.on("request", lambda request: seen.requests.append(request.url))
    seen.page.goto(where if isinstance(where, str) else where.resolve().as_uri())
    until(seen, "performance.getEntriesByName('charts-drawn').length > 0")
    return seen


def until(seen: Seen, expression: str, seconds: float = 10) -> None:
    """Wait until a JavaScript expression holds; Playwright's own way needs eval, which the page's policy forbids."""
    end = time.monotonic() + seconds
    while not seen.page.evaluate(expression):
        assert time.monotonic() < end, f"still not so after {seconds:g} s: {expression}"
        seen.page.wait_for_timeout(20)


def pixels_like(opened: Any, picture: bytes, color: str) -> int:
    """How many pixels of a PNG are close to a CSS color."""
    page = opened.new_page()
    try:
        count: int = page.evaluate(
            """async ([encoded, color]) => {
              const bytes = Uint8Array.from(atob(encoded), (c) => c.charCodeAt(0));
              const image = await createImageBitmap(new Blob([bytes], { type: "image/png" }));
              const canvas = new OffscreenCanvas(image.width, image.height + 1);
              const context = canvas.getContext("2d", { willReadFrequently: true });
              context.fillStyle = color;
              context.fillRect(0, image.height, 1, 1);
              const [r, g, b] = context.getImageData(0, image.height, 1, 1).data;
              context.drawImage(image, 0, 0);
              const { data } = context.getImageData(0, 0, image.width, image.height);
              let found = 0;
              for (let i = 0; i < data.length; i += 4) {
                if (Math.abs(data[i] - r) + Math.abs(data[i + 1] - g) + Math.abs(data[i + 2] - b) < 60) found += 1;
              }
              return found;
            }""",
            [base64.b64encode(picture).decode(), color],
        )
    finally:
        page.close()
    return count
