"""Make the README's first picture: `python benchmarks/nouns.py [--count 64] [--work DIR]`, one run a noun.

The nouns are evenly spread over the alphabetical list of all things that the shipped teacher knows; every one
is a run as `python -m splatdistill.train --prompt "a NOUN"` makes it, and nothing is left out. The judge in
the teacher's folder says what they are. Writes benchmarks/results/nouns.json and nouns.png. With --work the
splats are kept there, and a second call goes on.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from common import RESULTS, made, write_result
from PIL import Image, ImageDraw

from splatdistill.config.load import resolve
from splatdistill.formats.ply import read_ply, write_ply
from splatdistill.measure.claims.base import share
from splatdistill.measure.jury import Jury, around
from splatdistill.media.sheets import render_views
from splatdistill.priors.loading import words_of
from splatdistill.priors.reading import Vocabulary
from splatdistill.scene.cameras import orbit
from splatdistill.scene.pictures import to_uint8

SIZE, COLUMNS, LINE = 160, 8, 16  # pixels of a picture, pictures a row, pixels of a label
AZIMUTH = 30.0
TOLD = ("object", "object_first_five", "janus", "nothing", "called", "iou_share", "loose", "holes")


def chosen(count: int) -> list[str]:
    """Return that many of the shipped teacher's things, evenly spread over their alphabetical list."""
    words = words_of("real")
    assert isinstance(words, Vocabulary)
    things = sorted(words.things)
    return [things[i * len(things) // count] for i in range(count)]


def main() -> None:
    """Run what is missing, draw all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--work", type=Path, help="folder that keeps the splats")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        nouns, pictures, verdicts, known = chosen(options.count), [], {}, work / "seconds.json"
        seconds = json.loads(known.read_text("utf-8")) if known.exists() else {}
        jury = Jury.of("real")
        assert jury is not None
        for noun in nouns:
            path = work / f"{noun.replace(' ', '-')}.ply"
            if not path.exists():
                begin = time.perf_counter()
                scene = made(resolve({"prompt": f"a {noun}", "prior": {"name": "real"}}, None, []))
                seconds[noun] = round(time.perf_counter() - begin, 1)
                print(f"{noun}: {seconds[noun]} s, {len(scene['means'])} Gaussians", flush=True)
                write_ply(path, scene)
                known.write_text(json.dumps(seconds), "utf-8")
            scene, _ = read_ply(path)
            said = jury.verdict(f"a {noun}", *around(scene))
            verdicts[noun] = {name: said.get(name) for name in TOLD}
            pictures.append(render_views(scene, orbit([AZIMUTH], 15.0, 3.0, 42.0, SIZE, SIZE))[0])
    draw(nouns, pictures).save(RESULTS / "nouns.png")
    figures = {
        name: share([said[name] for said in verdicts.values() if said[name] is not None]) for name in TOLD[:4]
    }
    told = {"nouns": nouns, "seconds": seconds, "threads": torch.get_num_threads()}
    write_result("nouns", told | {"figures": figures, "verdicts": verdicts})


def draw(nouns: list[str], pictures: list[torch.Tensor]) -> Image.Image:
    """Return all pictures [S, S, 3] on one sheet, each with its noun below."""
    rows = -(-len(nouns) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * SIZE, rows * (SIZE + LINE)), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (noun, picture) in enumerate(zip(nouns, pictures, strict=True)):
        x, y = i % COLUMNS * SIZE, i // COLUMNS * (SIZE + LINE)
        shown = picture if picture.dtype == torch.uint8 else to_uint8(picture)
        sheet.paste(Image.fromarray(shown.numpy()), (x, y))
        pen.text((x + SIZE // 2, y + SIZE), noun, fill="black", anchor="ma")
    return sheet


if __name__ == "__main__":
    main()
