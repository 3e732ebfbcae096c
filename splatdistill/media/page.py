"""report.html: one self-contained page of a run that loads nothing from the network.

All user text is escaped; the content security policy admits only the page's own script and style, by hash.
"""

import base64
import hashlib
import html
import json
import math
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import torch
from torch.nn import ParameterDict

from splatdistill.scene.gaussians import activated, covariances, finite_mask, select, sh0_to_rgb
from splatdistill.scene.pictures import to_uint8

MOST_SPLATS = 60_000  # 3.2 MB of the file
POINTS = 400  # largest number of points of a plot
PLOTS = {"loss": "loss", "gradient_norm": "gradient norm", "t": "timestep t", "gaussians": "Gaussians"}


def document(title: str, policy: str, style: str, body: str) -> str:
    """Return a page of one heading as HTML; policy: its Content-Security-Policy."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{html.escape(policy)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{style}</style>
</head>
<body>
<h1>{html.escape(title)}</h1>
{body}</body>
</html>
"""


def report_page(
    gaussians: ParameterDict,
    title: str,
    facts: str,
    settings: str,
    records: Sequence[dict[str, Any]],
    turntable: bytes,
    filmstrip: bytes | None,
    camera: dict[str, float],
    background: Sequence[float],
) -> str:
    """Return the page as HTML.

    Args:
        gaussians: the scene of the interactive viewer.
        title: heading.
        facts: line below the heading.
        settings: configuration as YAML.
        records: the lines of metrics.jsonl, for the plots.
        turntable: a WebP animation.
        filmstrip: a PNG, or None.
        camera: azimuth, elevation and fov in radians, distance in world units.
        background: color in [0, 1].
    """
    style, script = asset("style.css"), asset("viewer.js")
    splats, left_out = pack_splats(gaussians)
    count = len(splats) // 40
    viewer = {"count": count, "background": list(background), "camera": camera}
    plots = "".join(plot(records, key, name) for key, name in PLOTS.items())
    policy = (
        f"default-src 'none'; img-src data:; script-src {digest(script)}; style-src {digest(style)}; "
        "base-uri 'none'; form-action 'none'"
    )
    strip = (
        f'<h2>Over the run</h2><img class="wide" alt="the same view from the first step to the result" '
        f'src="data:image/png;base64,{encoded(filmstrip)}">'
        if filmstrip
        else ""
    )
    few = f" The {left_out} faintest and smallest are left out here." if left_out else ""
    return document(
        title,
        policy,
        style,
        f"""<p class="quiet">{html.escape(facts)}</p>
<div class="pair">
<canvas id="viewer" tabindex="0" aria-label="the splat, to turn by mouse, touch or arrow keys"></canvas>
<img alt="the splat turning once" src="data:image/webp;base64,{encoded(turntable)}">
</div>
<p class="quiet">Drag to turn, scroll or pinch to zoom, double-click to return.{few}</p>
{strip}
{f'<h2>Training</h2><div class="plots">{plots}</div>' if plots else ""}
<h2>Settings</h2>
<pre>{html.escape(settings)}</pre>
<script type="application/json" id="settings">{json.dumps(viewer)}</script>
<script type="text/plain" id="splats">{encoded(splats)}</script>
<script>{script}</script>
""",
    )


def asset(name: str) -> str:
    """Return the text of a file in assets/report."""
    return files("splatdistill").joinpath("assets", "report", name).read_text(encoding="utf-8")


def digest(text: str) -> str:
    """Return the hash by which a content security policy admits an inline script or style."""
    return f"'sha256-{encoded(hashlib.sha256(text.encode()).digest())}'"


def encoded(content: bytes) -> str:
    """Return bytes as base64 text."""
    return base64.b64encode(content).decode()


@torch.no_grad()
def pack_splats(gaussians: ParameterDict) -> tuple[bytes, int]:
    """Pack the scene for viewer.js; also return how many Gaussians were left out to bound the size.

    The format is N rows of nine float32 (mean; covariance xx xy xz yy yz zz), then N of four bytes (RGB,
    opacity).
    """
    finite = select(gaussians, finite_mask(gaussians))
    means, quats, scales, opacities, sh = (value.cpu() for value in activated(finite))
    cov = covariances(quats, scales).flatten(1)[:, [0, 1, 2, 4, 5, 8]]
    weight = opacities * scales.sort(-1).values[:, 1:].prod(-1)  # about its largest silhouette
    kept = weight.argsort(descending=True, stable=True)[:MOST_SPLATS].sort().values
    rgb = sh0_to_rgb(sh[:, 0])
    rgba = to_uint8(torch.cat([rgb, opacities[:, None]], 1)[kept])
    rows = torch.cat([means, cov], 1)[kept].numpy().astype("<f4")
    return rows.tobytes() + rgba.numpy().tobytes(), len(means) - len(kept)


def plot(records: Sequence[dict[str, Any]], key: str, name: str) -> str:
    """Return a line plot over steps as SVG; empty with fewer than two finite values."""
    points = [(r["step"], r[key]) for r in records if isinstance(r.get(key), int | float) and "step" in r]
    if len(points) < 2 or points[-1][0] <= 0:
        return ""
    points = points[:: max(len(points) // POINTS, 1)] + points[-1:]
    width, height, left, right, top, bottom = 460, 190, 56, 14, 28, 26
    last, ys = points[-1][0], ticks(*extent([y for _, y in points]))
    xs = [x for x in ticks(0, last) if x <= last]

    def across(x: float) -> float:
        return left + x / last * (width - left - right)

    def down(y: float) -> float:
        return height - bottom - (y - ys[0]) / (ys[-1] - ys[0]) * (height - top - bottom)

    grid = "".join(
        f'<line class="grid" x1="{left}" x2="{width - right}" y1="{down(y):.1f}" y2="{down(y):.1f}"/>'
        f'<text x="{left - 7}" y="{down(y) + 4:.1f}" text-anchor="end">{y:.6g}</text>'
        for y in ys
    )
    steps = "".join(
        f'<text x="{across(x):.1f}" y="{height - 8}" text-anchor="middle">{x:.6g}</text>' for x in xs
    )
    line = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in points)
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(name)} over steps">'
        f'<text class="name" x="{left}" y="18">{html.escape(name)}</text>{grid}{steps}'
        f'<polyline class="line" points="{line}"/></svg>'
    )


def extent(values: Sequence[float]) -> tuple[float, float]:
    """Return the range of values, widened if they are all equal."""
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 1, high + 1)


def ticks(low: float, high: float) -> list[float]:
    """Return three to seven round numbers, evenly spaced, that enclose a range."""
    raw = (high - low) / 4
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= raw)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(i * step, 12) for i in range(first, last + 1)]
