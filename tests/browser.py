"""Debian's Chromium, driven by playwright; skips where there is none."""

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

INSTALL = "run tests/install_packages.sh"


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
