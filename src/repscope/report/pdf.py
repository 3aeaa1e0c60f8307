"""A page as PDF: printed by a Chromium or Chrome that is installed; repscope brings none."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from repscope.disk import whole_file
from repscope.errors import UserError

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
_DRAWING = 20_000  #: virtual milliseconds that the browser gives the figures
_SECONDS = 180


def print_pdf(page: Path, path: Path) -> Path:
    """Print a page with headless Chromium.

    Raises
    ------
    UserError
        When there is no such browser, or it fails.
    """
    named = os.environ.get("CHROMIUM")
    browser = named if named and Path(named).is_file() else next((found for n in _NAMES if (found := shutil.which(n))), None)
    if browser is None:
        raise UserError("--pdf needs Chromium or Chrome, and none is installed; install one, or name its file in CHROMIUM.")
    with tempfile.TemporaryDirectory() as profile, whole_file(path) as partial:
        command = [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={profile}",
            f"--virtual-time-budget={_DRAWING}",
            "--no-pdf-header-footer",
            f"--print-to-pdf={partial.resolve()}",
            page.resolve().as_uri(),
        ]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=_SECONDS)
        except (subprocess.SubprocessError, OSError) as error:
            raise UserError(f"{browser} could not print {page} ({type(error).__name__}); open the page and print it.") from error
        if not partial.is_file() or not partial.stat().st_size:
            raise UserError(f"{browser} wrote no PDF of {page}; open the page and print it.")
    return path
