"""Measure the errors and the sizes of the splat formats.

python benchmarks/format_errors.py: writes benchmarks/results/format_errors.json, a table in docs/FORMATS.md

A scene of random Gaussians within radius 1 is written and read back.
"""

from __future__ import annotations

import math
import re
import tempfile
from pathlib import Path

import torch
from common import write_result
from torch import Tensor
from torch.nn import ParameterDict

from splatdistill import formats
from splatdistill.formats.compressed_ply import morton_order
from splatdistill.scene.cameras import turntable
from splatdistill.scene.gaussians import init_blob, select, sh0_to_rgb
from splatdistill.scene.orientation import reorient
from splatdistill.scene.rendering import render

PAGE = Path(__file__).parents[1] / "docs" / "FORMATS.md"
BEGIN, END = "<!-- errors: benchmarks/format_errors.py -->\n", "<!-- end of errors -->"
IN_ORDER = (".ply", ".splat", ".spz", ".glb")  # the others are sorted along a Morton curve
BYTE = 0.5 / 255 + 1e-6  # what rounding to 8 bits may cost
BOUNDS = {  # the most that a scene within radius 1 may lose; tests hold the formats to it
    ".ply": dict(center=0, scale=0, rotation_deg=0, opacity=0, color=0, sh=0),
    ".compressed.ply": dict(
        center=1e-3, scale=0.01, rotation_deg=0.3, opacity=BYTE, color=BYTE, sh=1 / 64 + 1e-6
    ),
    ".splat": dict(center=3e-7, scale=1e-6, rotation_deg=0.9, opacity=BYTE, color=BYTE, sh=math.inf),
    ".spz": dict(center=3e-7, scale=0.032, rotation_deg=0.3, opacity=BYTE, color=0.0038, sh=0.0105),
    ".glb": dict(center=3e-7, scale=2e-6, rotation_deg=1e-3, opacity=1e-6, color=3e-7, sh=3e-6),
    ".sog": dict(center=2e-5, scale=0.025, rotation_deg=1.2, opacity=BYTE, color=4e-3, sh=5e-3),
}
COLUMNS = ("center", "scale", "rotation_deg", "opacity", "color", "sh")


def main() -> None:
    """Print the table and write it and the results."""
    torch.set_num_threads(1)
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for ending in formats.FORMATS:
            rows[ending] = measure(ending, Path(folder))
            print(ending, rows[ending])
    write_result("format_errors", {"rows": rows, "bounds": BOUNDS})
    before, _, after = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = after[after.index(END) :]
    PAGE.write_text(before + BEGIN + table(rows) + after, encoding="utf-8")


def measure(ending: str, folder: Path) -> dict[str, float]:
    """One row: bytes a Gaussian, the worst errors at SH degree 3, PSNR of renders at degrees 0 and 3."""
    row = {}
    for degree in (0, 3):
        original = scene(4000, degree)
        back = round_trip(folder / f"scene{ending}", original)
        size = (folder / f"scene{ending}").stat().st_size / 4000
        row |= {f"bytes_{degree}": size, f"psnr_{degree}": psnr(original, back)}
        if degree == 3:
            row |= errors(original, back)
    return row


def scene(count: int, sh_degree: int, seed: int = 0) -> ParameterDict:
    """Random Gaussians within radius 1: scales, opacities and colors as trained scenes have them."""
    generator = torch.Generator().manual_seed(seed)
    gaussians = init_blob(count, 0.9, 0.02, 0.5, sh_degree, 0.2, generator)
    with torch.no_grad():
        gaussians["scales"] += 0.7 * torch.randn(count, 3, generator=generator)
        gaussians["opacities"] += 2.0 * torch.randn(count, generator=generator)
        gaussians["quats"] *= 0.5 + torch.rand(count, 1, generator=generator)
        gaussians["sh0"].clamp_(-1.7, 1.7)  # colors in [0, 1]
        noise = torch.randn(gaussians["shN"].shape, generator=generator)
        gaussians["shN"].copy_((0.1 * noise).clamp(-0.9, 0.9))
    return gaussians


def round_trip(path: Path, gaussians: ParameterDict) -> ParameterDict:
    """Write and read back; the Gaussians come in their first order."""
    formats.write_splat(path, gaussians)
    back, _ = formats.read_splat(path)
    if path.name.endswith(IN_ORDER) and not path.name.endswith(".compressed.ply"):
        return back
    stored = reorient(gaussians, "z", formats.format_of(path).up)["means"].detach().numpy()
    return select(back, torch.from_numpy(morton_order(stored).argsort()))


def errors(original: ParameterDict, back: ParameterDict) -> dict[str, float]:
    """Return the worst errors: center, scale (relative), rotation (degrees), opacity, color, SH above 0."""
    a, b = ({name: t.detach().double() for name, t in s.items()} for s in (original, back))
    p, q = (torch.nn.functional.normalize(s["quats"], dim=-1) for s in (a, b))
    chord = torch.minimum((p - q).norm(dim=-1), (p + q).norm(dim=-1))  # q and -q are one rotation
    pairs = {
        "center": (a["means"], b["means"]),
        "scale": (a["scales"].exp() / a["scales"].exp(), b["scales"].exp() / a["scales"].exp()),
        "opacity": (a["opacities"].sigmoid(), b["opacities"].sigmoid()),
        "color": (sh0_to_rgb(a["sh0"]), sh0_to_rgb(b["sh0"])),
    }
    worst = {name: _largest(x - y) for name, (x, y) in pairs.items()}
    worst["rotation_deg"] = math.degrees(4 * math.asin(min(float(chord.max()) / 2, 1.0)))
    same = a["shN"].shape == b["shN"].shape
    return worst | {"sh": _largest(a["shN"] - b["shN"]) if same else math.inf}


def _largest(values: Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0


@torch.no_grad()
def psnr(original: ParameterDict, back: ParameterDict) -> float:
    """Decibels between renders of four views on gray."""
    cameras, gray = turntable(4, 15.0, 3.2, 40.0, 128), torch.full((3,), 0.5)
    a, b = (render(s, cameras, gray).rgb.clamp(0, 1) for s in (original, back))
    return float(-10 * ((a - b) ** 2).mean().clamp(min=1e-20).log10())


def table(rows: dict[str, dict[str, float]]) -> str:
    """Return the rows in Markdown."""
    heads = "bytes (SH 0), bytes (SH 3), center, scale, rotation, opacity, color, SH 1-3, PSNR (SH 0), "
    heads += "PSNR (SH 3)"
    lines = ["| format | " + heads.replace(", ", " | ") + " |", "|---" + "|---:" * 10 + "|"]
    for ending, row in rows.items():
        cells = [f"{row['bytes_0']:.1f}", f"{row['bytes_3']:.1f}"]
        for name in COLUMNS:
            value = row[name] * (100 if name == "scale" else 1)
            unit = {"scale": " %", "rotation_deg": "°"}.get(name, "")
            cells.append("lost" if math.isinf(value) else "0" if value == 0 else f"{value:.2g}{unit}")
        cells += ["exact" if row[key] > 150 else f"{row[key]:.1f} dB" for key in ("psnr_0", "psnr_3")]
        lines.append(
            f"| `{ending}` | " + " | ".join(re.sub(r"e-0(\d)", r"e-\1", cell) for cell in cells) + " |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
