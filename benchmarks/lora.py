"""Teach the shipped teacher a thing that it does not know, by a LoRA, and make it in 3D.

python benchmarks/lora.py --out DIR: writes benchmarks/results/lora.json and docs/lora.webp

Twelve pictures of a traffic light, drawn here, are all that the LoRA is trained on. Then `train --prompt "a
traffic light"` runs with and without it, and another prompt with it, all on the teacher of single views. Each
traffic light is compared with true views between the trained ones: PSNR, and overlap of the silhouettes.
Runs that DIR has already are not made again.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from common import write_result
from PIL import Image

from splatdistill import train
from splatdistill.folder import RESULT
from splatdistill.formats.ply import read_ply
from splatdistill.scene.cameras import Cameras, orbit
from splatdistill.scene.pictures import to_uint8
from splatdistill.scene.rendering import render
from splatdistill.scene.views import view_word
from splatdistill.teaching import lora
from splatdistill.teaching.solids import Solids, raycast

PAGE = Path(__file__).parents[1] / "docs" / "lora.webp"
PROMPT, OTHER = "a traffic light", "a red car"
KEEP = ("a red car", "a snowman", "a blue mug", "a yellow duck", "a chair", "a lighthouse", "a lamp")
ELEVATION, DISTANCE, FOV = 15.0, 3.0, 40.0
TAUGHT = [30.0 * k for k in range(12)]  # azimuths of the pictures, in degrees
ASKED = [15.0, 105.0, 195.0, 285.0]  # of the comparison, between them
BODY, POLE = np.array([0.13, 0.14, 0.15]), np.array([0.45, 0.46, 0.48])
LAMPS = (np.array([0.9, 0.1, 0.08]), np.array([0.98, 0.78, 0.1]), np.array([0.1, 0.75, 0.25]))


def traffic_light() -> np.ndarray:
    """Build a box with three lamps toward +X, on a pole with a foot; packed solids [1, P, 17]."""
    s = Solids(1, np.random.default_rng(0))
    s.box((0, 0, 1.05), (0.27, 0.30, 0.72), BODY)
    for row, color in enumerate(LAMPS):
        s.ellipsoid((0.27, 0, 1.50 - 0.45 * row), (0.10, 0.19, 0.19), color)
    s.frustum((0, 0, 0.0), (0.10, 0.10, 0.45), POLE)
    s.frustum((0, 0, -0.42), (0.36, 0.36, 0.07), POLE)
    s.fit(0.82)
    return s.packed()


def pictures(azimuths: list[float], size: int) -> np.ndarray:
    """Draw the thing from some azimuths: [n, size, size, 4] uint8, color premultiplied."""
    table = np.repeat(traffic_light(), len(azimuths), 0)
    return raycast(table, cameras(azimuths, size))


def cameras(azimuths: list[float], size: int) -> Cameras:
    """Return the cameras of some azimuths."""
    return orbit(azimuths, ELEVATION, DISTANCE, FOV, size, size)


def write_pictures(folder: Path) -> None:
    """Write the pictures and their captions, as a user would bring them."""
    folder.mkdir(parents=True, exist_ok=True)
    for azimuth, rgba in zip(TAUGHT, pictures(TAUGHT, 256), strict=True):
        straight = rgba.astype(np.float32)
        straight[..., :3] /= np.maximum(straight[..., 3:] / 255.0, 1e-3)
        name = folder / f"view-{azimuth:03.0f}"
        Image.fromarray(straight.clip(0, 255).round().astype(np.uint8), "RGBA").save(name.with_suffix(".png"))
        name.with_suffix(".txt").write_text(f"{PROMPT}, {view_word(azimuth, ELEVATION)}\n", "utf-8")


def views(splat: Path, size: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    """Render a splat on white at the asked azimuths: rgb [V,H,W,3] and alpha [V,H,W,1]."""
    with torch.no_grad():
        drawn = render(read_ply(splat)[0], cameras(ASKED, size), torch.ones(3))
    return drawn.rgb.clamp(0, 1), drawn.alpha


def main() -> None:
    """Draw, teach, distill, compare, and write the sheet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for pictures, LoRA and runs")
    out = parser.parse_args().out
    write_pictures(out / "pictures")
    file, start = out / "traffic_light.safetensors", time.process_time()
    taught = not file.exists()
    if taught:
        assert lora.main([str(out / "pictures"), "--out", str(file), "--keep", *KEEP]) == 0
    seconds = time.process_time() - start
    rgba = torch.tensor(pictures(ASKED, 128)).float() / 255
    truth, solid = rgba[..., :3] + 1 - rgba[..., 3:], rgba[..., 3:] > 0.5
    rows, sheet = {}, [truth]
    for name, prompt, more in (
        ("without", PROMPT, ["--allow-unknown"]),
        ("with", PROMPT, ["--lora", str(file)]),
        ("other-with", OTHER, ["--lora", str(file)]),
    ):
        run = out / name
        if not (run / RESULT).exists():
            words = ["--prompt", prompt, "--prior", "embedded", "--out", str(run), "--overwrite"]
            assert train.main([*words, *more]) == 0
        rgb, alpha = views(run / RESULT)
        sheet.append(rgb)
        if prompt == PROMPT:
            both, either = ((alpha > 0.5) & solid).sum(), ((alpha > 0.5) | solid).sum()
            error = float((rgb - truth).square().mean())
            rows[name] = {"psnr": -10 * np.log10(error), "overlap": float(both / either)}
            print(name, rows[name], flush=True)
    picture = torch.cat([torch.cat(list(row), 1) for row in sheet], 0)
    Image.fromarray(to_uint8(picture).numpy()).save(PAGE, "WEBP", quality=85, method=6)
    result = {"pictures": len(TAUGHT), "teaching_cpu_seconds": seconds if taught else None, "views": rows}
    write_result("lora", {**result, "bytes": file.stat().st_size})


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
