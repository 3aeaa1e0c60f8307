"""A real Chromium for the tests: opens a file and keeps what went wrong in it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

ARGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@dataclass
class Opened:
    """A page in the browser. troubles: errors and warnings of its console. requests: all but the file itself."""

    page: Page
    troubles: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)

    def overflow(self) -> int:
        """By how many px the page is wider than the window."""
        return self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


def executable() -> str | None:
    """`CHROMIUM`, else one on the path, else None for Playwright's own."""
    named = (os.environ.get("CHROMIUM"), *map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
    return next((found for found in named if found), None)


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable(), args=ARGS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Browser, path: Path, width: int = 1280, height: int = 900) -> Iterator[Opened]:
    """Open a file and wait until its figures are drawn."""
    context = browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True)
    try:
        held = Opened(context.new_page())
        url = path.resolve().as_uri()
        held.page.on("console", lambda m: held.troubles.append(m.text) if m.type in ("error", "warning") else None)
        held.page.on("pageerror", lambda error: held.troubles.append(str(error)))
        held.page.on("request", lambda r: held.requests.append(r.url) if r.url not in (url, "data:,") else None)
        held.page.on("dialog", lambda dialog: (held.dialogs.append(dialog.message), dialog.dismiss()))
        held.page.goto(url)
        if held.page.locator(".chart").count():
            held.page.wait_for_selector("html[data-drawn]", timeout=30_000)
        yield held
    finally:
        context.close()


def install() -> None:
    """Make sure that there is a browser: Debian's chromium as root, Playwright's own otherwise."""
    if executable():
        return
    if hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("apt-get"):
        subprocess.run(["apt-get", "update", "-q"], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(
            ["apt-get", "install", "-yq", "--no-install-recommends", "chromium", "fonts-dejavu-core"],
            check=True,
            stdout=subprocess.DEVNULL,
            env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
        )
    else:
        subprocess.run([sys.executable, "-m", "playwright", "install", "chromium"], check=True)


if __name__ == "__main__":
    install()
