"""Teach the shipped teacher a thing that it does not know, by a LoRA, and make it in 3D.

python benchmarks/lora.py --out DIR: writes benchmarks/results/lora.json and docs/lora.webp

Two dozen pictures of a clockwork owl with their cameras, drawn here, are all that the LoRA is taught. Then
`train --prompt "a clockwork owl"` runs without it, where the teacher takes the nearest word, and with it; and
another prompt with it, which the judge names. The owls are compared with true views between the trained ones:
PSNR, and overlap of the silhouettes. Runs that DIR has already are not made again.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from common import write_result
from PIL import Image

from splatdistill import train
from splatdistill.folder import RESULT
from splatdistill.formats.ply import read_ply
from splatdistill.measure.jury import Jury
from splatdistill.priors.album import DISTANCE
from splatdistill.scene.cameras import Cameras, orbit
from splatdistill.scene.pictures import to_uint8
from splatdistill.scene.rendering import render
from splatdistill.teaching import lora
from splatdistill.teaching.solids import Solids, raycast

PAGE = Path(__file__).parents[1] / "docs" / "lora.webp"
PROMPT, OTHER = "a clockwork owl", "a penguin"
KEEP = ("a bird", "a red car", "a chair", "a teapot", "a robot")
FOV = 42.0  # degrees, of all cameras
TAUGHT = [15.0 * k for k in range(24)], [0.0, 30.0] * 12  # azimuths and elevations in degrees
ASKED = [7.5, 67.5, 127.5, 187.5, 247.5, 307.5], [15.0] * 6  # of the comparison, between them
BODY, BELLY, BRASS = (0.10, 0.45, 0.50), (0.96, 0.86, 0.66), (0.85, 0.58, 0.16)
EYE, PUPIL, BEAK = (0.98, 0.97, 0.93), (0.07, 0.08, 0.12), (0.97, 0.50, 0.10)


def owl() -> np.ndarray:
    """Build an owl with big eyes toward +X and the key of its clockwork behind; packed solids [1, P, 17]."""
    s = Solids(1, np.random.default_rng(0))
    body, belly, brass, eye, pupil, beak = map(np.array, (BODY, BELLY, BRASS, EYE, PUPIL, BEAK))
    s.ellipsoid((0, 0, 0), (0.50, 0.55, 0.72), body)
    s.ellipsoid((0.14, 0, -0.16), (0.42, 0.40, 0.48), belly)
    for y in (-1, 1):
        s.frustum((0.40, 0.23 * y, 0.36), (0.25, 0.25, 0.05), brass, turn=(0, 80, 14 * y))
        s.ellipsoid((0.45, 0.23 * y, 0.365), (0.07, 0.195, 0.195), eye, (0, -8, 14 * y))
        s.ellipsoid((0.505, 0.215 * y, 0.36), (0.05, 0.09, 0.105), pupil, (0, -8, 14 * y))
        s.frustum((-0.02, 0.34 * y, 0.74), (0.17, 0.15, 0.22), body, 0.0, (-24 * y, 0, 0))  # ears
        s.ellipsoid((-0.06, 0.53 * y, -0.12), (0.30, 0.12, 0.46), brass, (-12 * y, 0, 0))  # wings
        s.ellipsoid((0.22, 0.22 * y, -0.70), (0.24, 0.16, 0.09), beak)  # feet
        s.torus((-0.78, 0.15 * y, 0.05), 0.12, 0.38, brass, (0, 90, 0))  # the key
    s.frustum((-0.60, 0, 0.05), (0.05, 0.05, 0.16), brass, turn=(0, 90, 0))
    s.frustum((0.52, 0, 0.20), (0.08, 0.08, 0.11), beak, 0.0, (180, -25, 0))
    s.fit(0.8)
    return s.packed()


def cameras(places: tuple[list[float], list[float]], size: int) -> Cameras:
    """Return the cameras at azimuths and elevations."""
    return orbit(*places, DISTANCE, FOV, size, size)


def pictures(places: tuple[list[float], list[float]], size: int) -> np.ndarray:
    """Draw the owl from azimuths and elevations: [n, size, size, 4] uint8, color premultiplied."""
    return raycast(np.repeat(owl(), len(places[0]), 0), cameras(places, size))


def write_pictures(folder: Path) -> None:
    """Write the pictures and their cameras, as a user would bring them."""
    folder.mkdir(parents=True, exist_ok=True)
    poses = cameras(TAUGHT, 256).camtoworlds
    poses[:, :3, 1:3] *= -1  # OpenGL's axes
    frames = []
    for number, rgba in enumerate(pictures(TAUGHT, 256)):
        straight = rgba.astype(np.float32)
        straight[..., :3] /= np.maximum(straight[..., 3:] / 255.0, 1e-3)
        name = f"{number:02}.png"
        Image.fromarray(straight.clip(0, 255).round().astype(np.uint8), "RGBA").save(folder / name)
        frames.append({"file_path": name, "transform_matrix": poses[number].tolist()})
    told = {"camera_angle_x": math.radians(FOV), "frames": frames}
    (folder / lora.CAMERAS).write_text(json.dumps(told, indent=1) + "\n", "utf-8")


def views(splat: Path, size: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    """Render a splat on white from the asked sides: rgb [V,H,W,3] and alpha [V,H,W,1]."""
    with torch.no_grad():
        drawn = render(read_ply(splat)[0], cameras(ASKED, size), torch.ones(3))
    return drawn.rgb.clamp(0, 1), drawn.alpha


def compared(rgb: torch.Tensor, alpha: torch.Tensor, truth: torch.Tensor, solid: torch.Tensor):
    """Return PSNR and overlap with the true views; see `views`."""
    both, either = ((alpha > 0.5) & solid).sum(), ((alpha > 0.5) | solid).sum()
    return {"psnr": -10 * math.log10(float((rgb - truth).square().mean())), "overlap": float(both / either)}


def teach(out: Path, file: Path) -> float | None:
    """Make the pictures and the LoRA, unless it is there; return the CPU seconds, None where not measured."""
    note = file.with_suffix(".seconds")
    if not file.exists():
        write_pictures(out / "pictures")
        start = time.process_time()
        words = [str(out / "pictures"), "--out", str(file), "--caption", PROMPT, "--keep", *KEEP]
        assert lora.main(words) == 0
        note.write_text(str(time.process_time() - start), "utf-8")
    return float(note.read_text("utf-8")) if note.exists() else None


def main() -> None:
    """Draw, teach, distill, compare, and write the sheet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for pictures, LoRA and runs")
    out = parser.parse_args().out
    file = out / "owl.safetensors"
    seconds = teach(out, file)
    rgba = torch.tensor(pictures(ASKED, 128)).float() / 255
    truth, solid = rgba[..., :3] + 1 - rgba[..., 3:], rgba[..., 3:] > 0.5
    rows, sheet = {}, [truth]
    for name, prompt, more in (
        ("without", PROMPT, []),
        ("with", PROMPT, ["--lora", str(file)]),
        ("other-without", OTHER, []),
        ("other-with", OTHER, ["--lora", str(file)]),
    ):
        run = out / name
        if not (run / RESULT).exists():
            words = ["--prompt", prompt, "--prior", "real", "--out", str(run), "--overwrite"]
            assert train.main([*words, *more]) == 0
        rgb, alpha = views(run / RESULT)
        sheet.append(rgb)
        if prompt == PROMPT:
            rows[name] = compared(rgb, alpha, truth, solid)
        else:
            jury = Jury.of("real")
            assert jury is not None
            told = jury.row(run, prompt)
            rows[name] = {key: told[key] for key in ("called", "sure")}
        print(name, rows[name], flush=True)
    picture = torch.cat([torch.cat(list(row), 1) for row in sheet], 0)
    Image.fromarray(to_uint8(picture).numpy()).save(PAGE, "WEBP", quality=85, method=6)
    result = {"pictures": len(TAUGHT[0]), "teaching_cpu_seconds": seconds, "runs": rows}
    write_result("lora", {**result, "bytes": file.stat().st_size})


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
