"""sweep.html: one self-contained page of several runs, which loads nothing from the network."""

import html
import io
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from splatdistill.folder import METRICS, REPORT, RESULT, read_metrics
from splatdistill.media.page import asset, digest, document, encoded
from splatdistill.media.sheets import runs_sheet

SIZE = 224  # of a view in pixels
TOLD = {
    "gaussians": "Gaussians",
    "loss": "loss",
    "gradient_norm": "gradient norm",
    "skipped": "steps skipped",
}


def runs_page(title: str, runs: Mapping[Path, str], failed: Mapping[str, str] | None = None) -> str:
    """Return the page of finished runs as HTML: four views of each, its last figures, a link to its report.

    Args:
        title: heading.
        runs: the folders, side by side in the page's own, and their names.
        failed: the names of runs that failed, and why.
    """
    style = asset("style.css")
    policy = f"default-src 'none'; img-src data:; style-src {digest(style)}; base-uri 'none'"
    return document(
        title,
        policy,
        style,
        f"""<p class="quiet">{len(runs)} runs, four views each; a name leads to the run's own page.</p>
{"".join(f"<p>{html.escape(f'{name}: {why}')}</p>" for name, why in (failed or {}).items())}
{"".join(section(run, name) for run, name in runs.items())}
""",
    )


def section(run: Path, name: str) -> str:
    """Return a run's part of the page."""
    picture = io.BytesIO()
    runs_sheet([run / RESULT], SIZE, 1).save(picture, format="PNG")
    last = next(reversed(read_metrics(run / METRICS)), {})
    told = [f"{word} {last[key]:.4g}" for key, word in TOLD.items() if isinstance(last.get(key), int | float)]
    return (
        f'<h2><a href="{quote(run.name)}/{REPORT}">{html.escape(name)}</a></h2>\n'
        f'<img class="wide" alt="four views" src="data:image/png;base64,{encoded(picture.getvalue())}">\n'
        f'<p class="quiet">{html.escape(", ".join(told))}</p>\n'
    )
