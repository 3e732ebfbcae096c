"""Make the README's pictures: `PYTHONPATH=tests python benchmarks/readme_pictures.py [--prompt TEXT]`.

One run with the viewer open in a headless Chromium: docs/viewer.png is what it shows when half is done,
docs/turntable.webp the run's own turntable.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from browser import Page, browser

DOCS = Path(__file__).parents[1] / "docs"


def main() -> None:
    """Run, look, keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prompt", default="a wooden chair")
    prompt = parser.parse_args().prompt
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "splatdistill.train", "--viewer", "--out", str(out)]
        with subprocess.Popen([*command, "--prompt", prompt], stderr=subprocess.PIPE, text=True) as run:
            assert run.stderr is not None
            found = (re.search(r"viewer: (http://\S+)", line) for line in run.stderr)
            url = next(match.group(1) for match in found if match)
            with browser(Path(folder)) as page:
                look(page, url)
            run.stderr.read()
        assert run.returncode == 0
        shutil.copy(out / "turntable.webp", DOCS / "turntable.webp")


def look(page: Page, url: str) -> None:
    """Photograph the viewer when half of the steps are done."""
    page.open(url)
    page.until("document.body.textContent.includes('Gaussians')")
    page.evaluate("document.querySelectorAll('.mantine-Notification-root').forEach(e => e.remove())")
    page.evaluate(
        """[...document.querySelectorAll("input[type=checkbox]")].find(e => {
            while (!e.textContent.trim()) e = e.parentElement;
            return e.textContent.includes("Teacher's view");
        }).click()"""
    )
    half = r"[/step(\d+) \/ (\d+)/.exec(document.body.textContent)].some(m => m && m[1] > m[2] / 2)"
    page.until(half, frames=100_000)
    page.screenshot(DOCS / "viewer.png")


if __name__ == "__main__":
    main()
