"""The training set on disk: shards of scenes, first as images, then as latents.

A shard is determined by (seed, its number), is written atomically, and is kept once it exists: any number of
interrupted runs, or several in parallel on different numbers, produce the same set.
"""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from splatdistill.files import atomic_write
from splatdistill.teaching.compositions import (
    VIEWS,
    before,
    draw_background,
    draw_cameras,
    draw_scene,
)
from splatdistill.teaching.renderer import Renderer
from splatdistill.teaching.shelf import Shelf

log = logging.getLogger(__name__)

SCENES = 256  # of a shard


def shard_path(folder: Path, kind: str, number: int) -> Path:
    """Return the path of a shard of "pictures" or "latents"."""
    return folder / f"{kind}-{number:05d}.npz"


def render_shard(path: Path, shelf: Shelf, renderer: Renderer, seed: Sequence[int], scenes: int) -> None:
    """Write one shard of pictures.

    pictures [n, V, S, S, 3] uint8; captions [n, K] text; cameras [n, V, 4]: azimuth, elevation in degrees,
    distance, field of view in degrees; backgrounds [n, 3]; ids, nouns, colors [n, 2] text, "" where there is
    no second thing or no named color; relations [n] text.
    """
    size = renderer.size
    rows: dict[str, list[Any]] = {
        name: []
        for name in ("pictures", "captions", "cameras", "backgrounds", "ids", "nouns", "colors", "relations")
    }
    for i in range(scenes):
        rng = np.random.default_rng((*seed, i))
        scene, cameras = draw_scene(shelf, rng), draw_cameras(size, rng)
        rgba = renderer.draw(scene.mesh, cameras, scene.light)
        background = draw_background(rgba, rng)
        orbits = (cameras.azimuth_deg, cameras.elevation_deg, cameras.distance, cameras.fov_deg)
        blank = [""] * (2 - len(scene.entries))
        rows["pictures"].append(before(rgba, background))
        rows["captions"].append(scene.captions)
        rows["cameras"].append(torch.stack(orbits, 1).numpy())
        rows["backgrounds"].append(background.astype(np.float32))
        rows["ids"].append([e.id for e in scene.entries] + blank)
        rows["nouns"].append([e.noun for e in scene.entries] + blank)
        rows["colors"].append([c or "" for c in scene.colors] + blank)
        rows["relations"].append(scene.relation)
    with atomic_write(path) as file:
        np.savez(file, allow_pickle=False, **{name: np.array(values) for name, values in rows.items()})


def render_shards(folder: Path, shelf: Shelf, renderer: Renderer, numbers: range, seed: int) -> None:
    """Write those shards of pictures that are not there yet."""
    for number in numbers:
        path, start = shard_path(folder, "pictures", number), time.perf_counter()
        if not path.exists():
            render_shard(path, shelf, renderer, (seed, number), SCENES)
            log.info("%s: %.1f scenes/s", path.name, SCENES / (time.perf_counter() - start))


@torch.no_grad()
def encode_shard(source: Path, target: Path, encode: Any, batch: int = 64) -> None:
    """Write a shard of latents [n, V, C, h, w] float16 beside all else of a shard of pictures.

    encode: from pictures [B, 3, S, S] in [0, 1] to latents [B, C, h, w].
    """
    with np.load(source) as arrays:
        rows = {name: arrays[name] for name in arrays.files}
    flat = torch.from_numpy(rows.pop("pictures")).flatten(0, 1).permute(0, 3, 1, 2)
    latents = torch.cat([encode(part.float() / 255.0) for part in flat.split(batch)])
    rows["latents"] = latents.unflatten(0, (-1, VIEWS)).half().numpy()
    with atomic_write(target) as file:
        np.savez(file, allow_pickle=False, **rows)


def encode_shards(pictures: Path, folder: Path, encode: Any, workers: int = 1) -> int:
    """Encode the shards of images that have no latents yet; return how many were made."""
    sources = sorted(pictures.glob("pictures-*.npz"))
    pairs = [(source, folder / source.name.replace("pictures", "latents")) for source in sources]
    missing = [pair for pair in pairs if not pair[1].exists()]
    return len(list(spread(partial(_encode_pair, encode), missing, workers)))


def _encode_pair(encode: Any, pair: tuple[Path, Path]) -> None:
    encode_shard(*pair, encode)


def strip(views: np.ndarray, quality: int) -> bytes:
    """Return views [V, S, S, 3] uint8 as one WebP file, beside one another."""
    stream = io.BytesIO()
    Image.fromarray(np.concatenate(list(views), 1)).save(stream, "WEBP", quality=quality, method=4)
    return stream.getvalue()


def views_of(file: bytes) -> np.ndarray:
    """Return the views [V, S, S, 3] of a file that `strip` made."""
    whole = np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))
    return np.stack(np.split(whole, whole.shape[1] // whole.shape[0], 1))


def pack(sources: Sequence[Path], path: Path) -> int:
    """Write shards of pictures as one small file, the views of each scene as one WebP strip.

    Some 9 kB a scene, at 36 dB: for a machine that has a GPU and cannot render. Returns how many scenes.
    """
    strips: list[bytes] = []
    rows: dict[str, list[np.ndarray]] = {}
    for source in sources:
        with np.load(source) as arrays:
            for name in arrays.files:
                if name != "pictures":
                    rows.setdefault(name, []).append(arrays[name])
            strips += [strip(scene, 70) for scene in arrays["pictures"]]
    told = {name: np.concatenate(values) for name, values in rows.items()}
    joined = np.frombuffer(b"".join(strips), np.uint8)
    with atomic_write(path) as file:
        lengths = np.array([len(one) for one in strips])
        np.savez_compressed(file, allow_pickle=False, strips=joined, lengths=lengths, **told)
    return len(strips)


def unpack(packs: Sequence[Path], folder: Path, workers: int = 1) -> int:
    """Write the shards of pictures that `pack` has read, numbered on; those that are there stay. How many."""
    parts = []
    for pack in packs:
        with np.load(pack) as arrays:
            rows = {name: arrays[name] for name in arrays.files}
        strips, lengths = rows.pop("strips"), rows.pop("lengths")
        ends = np.concatenate([[0], lengths.cumsum()])
        for first in range(0, len(lengths), SCENES):
            told = {name: values[first : first + SCENES] for name, values in rows.items()}
            around = ends[first : first + SCENES + 1]
            part = strips[around[0] : around[-1]], around - around[0], told
            parts.append((shard_path(folder, "pictures", len(parts)), *part))
    return len(list(spread(_unpack_shard, [part for part in parts if not part[0].exists()], workers)))


def _unpack_shard(part: tuple[Path, np.ndarray, np.ndarray, dict[str, np.ndarray]]) -> None:
    path, strips, ends, told = part
    pictures = [views_of(strips[start:end].tobytes()) for start, end in pairwise(ends)]
    with atomic_write(path) as file:
        np.savez(file, allow_pickle=False, pictures=np.stack(pictures), **told)


def spread(work: Callable[[Any], Any], items: Sequence[Any], workers: int) -> Iterator[Any]:
    """Yield work(item) of each item in order, made by several processes where `workers` is more than 1."""
    if workers == 1:
        yield from map(work, items)
        return
    threads: dict[str, Any] = {"initializer": torch.set_num_threads, "initargs": (1,)}
    with ProcessPoolExecutor(workers, get_context("spawn"), **threads) as pool:
        yield from pool.map(work, items)
