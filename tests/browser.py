"""Debian's Chromium, driven by playwright; skips where there is none."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

INSTALL = "run tests/install_packages.sh"
AXE = Path(__file__).parent / "report" / "axe-core" / "axe.min.js"


class Tab:
    """A page of a context of its own, and all that it complains about or asks other addresses than `own` for."""

    def __init__(self, browser: Any, own: tuple[str, ...], **context: Any) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **context})
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.page.on("request", lambda request: self._note_request(request.url, own))

    def _note_request(self, url: str, own: tuple[str, ...]) -> None:
        if not url.startswith(own):
            self.complaints.append(f"asked for {url}")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright, of artkv's extra dev")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip(f"needs chromium: {INSTALL}")
    with api.sync_playwright() as playwright:
        # As root, in a container, Chromium's sandbox has no namespaces to make.
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started
        started.close()
