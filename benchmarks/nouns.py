"""Make runs of the shipped teacher, judge and draw them: `python benchmarks/nouns.py [LIST] [--work DIR]`.

LIST is spread: the README's first picture, 64 nouns evenly spread over the alphabetical list of all in the
album; drawn: 100 others of them; or pairs: the 60 of benchmarks/real_samples.py. Each is a run as `python -m
splatdistill.train --prompt PROMPT` makes it, and nothing is left out. The judge in the teacher's folder says
what they are. Writes benchmarks/results/nouns-LIST.json and .png (nouns.json and nouns.png for spread). With
--work the splats are kept there, and a second call goes on.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

import torch
from common import RESULTS, made, write_result
from PIL import Image, ImageDraw
from real_samples import everything, pairs, vocabulary

from splatdistill.config.load import resolve
from splatdistill.formats.ply import read_ply, write_ply
from splatdistill.measure.claims.base import share
from splatdistill.measure.jury import Jury, around
from splatdistill.media.sheets import render_views
from splatdistill.scene.cameras import orbit
from splatdistill.scene.pictures import to_uint8

SIZE, COLUMNS, LINE = 160, 8, 16  # pixels of a picture, pictures a row, pixels of a label
AZIMUTH = 30.0
SPREAD, DRAWN, SEED = 64, 100, 20261127
TOLD = ("object", "object_first_five", "janus", "nothing", "called", "iou_share", "loose", "holes")


def chosen(kind: str) -> list[str]:
    """Return the things of a list, without articles."""
    if kind == "pairs":
        return [text.removeprefix("a ") for text in pairs(vocabulary())]
    things = everything()
    spread = [things[i * len(things) // SPREAD] for i in range(SPREAD)]
    if kind == "spread":
        return spread
    return random.Random(SEED).sample([noun for noun in things if noun not in spread], DRAWN)


def main() -> None:
    """Run what is missing, draw all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("list", nargs="?", choices=("spread", "drawn", "pairs"), default="spread")
    parser.add_argument("--work", type=Path, help="folder that keeps the splats")
    options = parser.parse_args()
    name = "nouns" if options.list == "spread" else f"nouns-{options.list}"
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        nouns, pictures, verdicts, known = chosen(options.list), [], {}, work / "seconds.json"
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
            verdicts[noun] = {key: said.get(key) for key in TOLD}
            pictures.append(render_views(scene, orbit([AZIMUTH], 15.0, 3.0, 42.0, SIZE, SIZE))[0])
    draw(nouns, pictures).save(RESULTS / f"{name}.png")
    values = {key: [said[key] for said in verdicts.values() if said[key] is not None] for key in TOLD[:4]}
    figures = {key: share(hits) for key, hits in values.items() if hits}
    told = {"nouns": nouns, "seconds": seconds, "threads": torch.get_num_threads()}
    write_result(name, told | {"figures": figures, "verdicts": verdicts})


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
