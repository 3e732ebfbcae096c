"""Make the shipped teacher from the models: `python -m splatdistill.teaching.teach STAGE --out DIR`.

Stages, each continuing where an interrupted run stopped: `render` draws shards of pictures; `encode` fits the
codec to the first of them and turns all that are there into latents; `decode` trains the codec's decoder;
`train` teaches the denoiser and the text encoder, after `adopt` from the weights of an exported teacher;
`table` maps other English words to known names; `export` writes DIR/teacher, which `--prior DIR/teacher`
loads, with the judge and its true models where those are made (`teaching.judge`, `teaching.truth`); `sheet`
draws samples of it. `pack` and `unpack` take the pictures to a machine that has a GPU and cannot render.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from splatdistill.console import exit_status
from splatdistill.errors import UserError
from splatdistill.priors import album
from splatdistill.priors.album import Album
from splatdistill.priors.judge import FOLDER as JUDGE
from splatdistill.priors.judge import TOLD, TRUTH, WEIGHTS
from splatdistill.priors.loading import REAL
from splatdistill.priors.patch_codec import PatchCodec
from splatdistill.priors.words import COLORS
from splatdistill.scene.pictures import to_uint8
from splatdistill.teaching import phrases, pupil, shards
from splatdistill.teaching.assets import Entry, load_entries
from splatdistill.teaching.compositions import learned_pairs
from splatdistill.teaching.decoder import psnr, train_decoder
from splatdistill.teaching.pages import Pages, plain_meshes, render_pages
from splatdistill.teaching.renderer import Renderer
from splatdistill.teaching.shelf import Shelf, procedural_entries

log = logging.getLogger(__name__)

SIZE = 128
FAMILY = "views"  # of the presets
TRAINING, VALIDATION = 1, 2  # seeds
FIT = 8  # shards that the codec is fitted to
SHOWN = (
    "chair", "red car", "palm tree", "dog", "hamburger", "castle", "blue mug", "airplane",
    "sofa", "mushroom", "robot", "snowman", "red apple", "guitar", "pirate ship", "bookcase",
    "red car on top of blue cube", "teapot on top of table", "cat next to dog", "green cube",
)  # fmt: skip


def all_entries(bundle: Path) -> list[Entry]:
    """Return the bundle's entries, and procedural objects where it has none of that noun."""
    entries = load_entries(bundle)
    return entries + procedural_entries(entry.noun for entry in entries)


def whole_shelf(options: argparse.Namespace) -> Shelf:
    """Return the shelf of all entries, whose meshes are cached in DIR."""
    entries = tuple(all_entries(options.bundle))
    return Shelf(entries, options.bundle, options.out / "meshes", Renderer(SIZE))


def word_numbers(folder: Path) -> dict[str, int]:
    """Return the index of every word; 0 pads and 1 is any other."""
    words = json.loads((folder / "words.json").read_text("utf-8"))
    return {word: i + 2 for i, word in enumerate(words)}


def render(options: argparse.Namespace) -> None:
    """Draw shards of pictures, of training or of held-out models."""
    shelf = whole_shelf(options)
    words = phrases.vocabulary(list(shelf.entries), list(COLORS))
    (options.out / "words.json").write_text(json.dumps(words, indent=0) + "\n", "utf-8")
    numbers = range(options.first, options.first + options.shards)
    for name, held_out, seed in (
        ("pictures", False, TRAINING),
        ("held_out_views", False, VALIDATION),
        ("held_out_models", True, VALIDATION),
    ):
        kept = shelf.split(held_out)
        if kept.entries:
            (options.out / name).mkdir(exist_ok=True)
            chosen = numbers if name == "pictures" else range(2)
            shards.render_shards(options.out / name, kept, kept.renderer, chosen, seed)


def pages(options: argparse.Namespace) -> None:
    """Draw the album's pages of the training models, and of the pairs in all pictures."""
    shelf = whole_shelf(options).split(False)
    ids = [entry.id for entry in shelf.entries]
    drawn = render_pages(plain_meshes(shelf), shelf.renderer)
    Pages.save(options.out, drawn, ids, drawn_pairs(options.out), options.workers)
    log.info("%d pages", len(ids))


def drawn_pairs(folder: Path) -> set[tuple[str, str, str]]:
    """Return the models and the relation of all pairs in the pictures of DIR."""
    found: set[tuple[str, str, str]] = set()
    for path in sorted(folder.glob("*/pictures-*.npz")):
        with np.load(path) as arrays:
            rows = zip(arrays["ids"].tolist(), arrays["relations"].tolist(), strict=True)
            found |= {(first, second, relation) for (first, second), relation in rows if second}
    return found


def encode(options: argparse.Namespace) -> None:
    """Fit the codec where there is none, and encode."""
    folder = options.out / "codec"
    if not folder.is_dir():
        paths = sorted((options.out / "pictures").glob("*.npz"))[:FIT]
        if not paths:
            raise UserError(f"no pictures in {options.out}: run the stage render first")
        parts = [np.load(path)["pictures"][:, ::2].reshape(-1, SIZE, SIZE, 3)[::2] for path in paths]
        pictures = torch.from_numpy(np.concatenate(parts)).permute(0, 3, 1, 2).float() / 127.5 - 1
        torch.manual_seed(TRAINING)
        codec: Any = PatchCodec(scaling_factor=pupil.SCALE)
        codec.fit(pictures)
        codec.save_pretrained(folder)
    to_latents = encoder(options)
    for name in ("pictures", "held_out_views", "held_out_models"):
        if not (options.out / name).is_dir():
            continue
        target = options.out / name.replace("pictures", "latents")
        target.mkdir(exist_ok=True)
        made = shards.encode_shards(options.out / name, target, to_latents, options.workers)
        log.info("%s: %d shards encoded", name, made)


def encoder(options: argparse.Namespace) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the codec's map from pictures [B, 3, S, S] in [0, 1] to scaled latents."""
    codec: Any = PatchCodec.from_pretrained(options.out / "codec").to(options.device).requires_grad_(False)
    return partial(_scaled_latents, codec)


def _scaled_latents(codec: Any, rgb: torch.Tensor) -> torch.Tensor:
    return codec.encode(2 * rgb - 1).latents * codec.config.scaling_factor


def decode(options: argparse.Namespace) -> None:
    """Train the codec's decoder, and measure it on held-out models."""
    paths = sorted((options.out / "pictures").glob("*.npz"))
    codec: Any = PatchCodec.from_pretrained(options.out / "codec").to(options.device)
    train_decoder(codec, paths, options.decoder_steps)
    codec.cpu().save_pretrained(options.out / "codec")
    for path in sorted((options.out / "held_out_models").glob("pictures-*.npz"))[:1]:
        with np.load(path) as arrays:
            log.info("%.2f dB on held-out models", psnr(codec, arrays["pictures"][:, 0]))


def load_examples(name: str, options: argparse.Namespace, most: int | None = None) -> pupil.Examples:
    """Load the latents of a folder, and the album's pages."""
    paths = sorted((options.out / name).glob("latents-*.npz"))[:most]
    if not paths or not (options.out / "pages.npz").exists():
        raise UserError(
            f"no latents or pages in {options.out}: run the stages render, pages and encode first"
        )
    pages, words = Pages.load(options.out, options.device), word_numbers(options.out)
    return pupil.Examples.load(paths, words, pages, encoder(options), options.device)


def make_pupil(options: argparse.Namespace, examples: pupil.Examples | None) -> pupil.Pupil:
    """Load the pupil of DIR/RUN, or create it; its settings and statistics are stored beside it."""
    run = options.out / options.run
    run.mkdir(exist_ok=True)
    described = run / "pupil.json"
    if not described.exists():
        if examples is None:
            raise UserError(f"nothing was trained in {run}: run the stage train first")
        channels = pupil.statistics(examples.latents[:4000])
        told = {"settings": asdict(chosen_settings(options)), "channels": channels}
        described.write_text(json.dumps(told), "utf-8")
    told = json.loads(described.read_text("utf-8"))
    settings = pupil.PupilSettings(**told["settings"] | {"shares": tuple(told["settings"]["shares"])})
    made = pupil.Pupil(settings, len(word_numbers(options.out)) + 2, told["channels"], options.device)
    if (run / "pupil.pt").exists():
        made.load(run / "pupil.pt")
    return made


def chosen_settings(options: argparse.Namespace) -> pupil.PupilSettings:
    """Return the settings of a new run."""
    given = {f.name: getattr(options, f.name, None) for f in fields(pupil.PupilSettings)}
    return replace(pupil.PupilSettings(), **{k: v for k, v in given.items() if v is not None})


def adopt(options: argparse.Namespace) -> None:
    """Take the words, the codec and the weights of an exported teacher: `train` goes on from them."""
    source, run = options.teacher, options.out / options.run
    if (run / "pupil.json").exists():
        raise UserError(f"{run} has been trained: expected a new one, name another with --run")
    words, config = (
        json.loads((source / name).read_text("utf-8"))
        for name in ("vocabulary.json", "transformer/config.json")
    )
    (options.out / "words.json").write_text(json.dumps(words["words"], indent=0) + "\n", "utf-8")
    codec: Any = PatchCodec.from_pretrained(source / "vae")
    codec.float().save_pretrained(options.out / "codec")
    settings = asdict(chosen_settings(options))
    settings |= {name: config[name] for name in settings.keys() & config.keys()}
    channels = {name: config[name] for name in ("means", "deviations")}
    run.mkdir()
    (run / "pupil.json").write_text(json.dumps({"settings": settings, "channels": channels}), "utf-8")
    made = make_pupil(options, None)
    made.adopt(source)
    made.save(run / "pupil.pt")


def train(options: argparse.Namespace) -> None:
    """Train the denoiser and the text encoder."""
    examples = load_examples("latents", options, options.most)
    log.info("%d scenes", len(examples.latents))
    made = make_pupil(options, examples)
    count = sum(p.numel() for p in made.networks.parameters())
    log.info("%.1f M parameters, from step %d", count / 1e6, made.step)
    ends = {
        "until": options.until,
        "fall": options.fall,
        "minutes": options.minutes,
        "seconds": options.seconds,
        "fall_seconds": options.fall_seconds,
    }
    pupil.train(made, examples, options.out / options.run, **ends)
    for name, loss in validate(made, options).items():
        log.info("%s: loss %.5f", name, loss)


@torch.no_grad()
def validate(made: pupil.Pupil, options: argparse.Namespace) -> dict[str, float]:
    """Return the loss of the averaged weights on held-out views and models, eight batches each."""
    losses = {}
    for name in ("held_out_views", "held_out_models"):
        if (options.out / name).is_dir():
            examples = load_examples(name, options)
            batches = [pupil.draw_batch(made.settings, 10**9 + i, examples) for i in range(8)]
            losses[name] = sum(float(made.loss(batch, made.average.module)) for batch in batches) / 8
    return losses


def table(options: argparse.Namespace) -> None:
    """Make DIR/nearest.tsv, the known names for other English words."""
    from splatdistill.teaching.nearest import WordNet, corrected, encode_words, nearest_names

    wordnet = WordNet.load()
    told = phrases.describe_vocabulary(all_entries(options.bundle))
    encode = options.encoder and partial(encode_words, folder=options.encoder)
    found = nearest_names(wordnet, told["names"], wordnet.visible_words(), encode, told["things"])
    found = corrected(found, told["names"])
    lines = "".join(f"{word}\t{name}\n" for word, name in sorted(found.items()))
    (options.out / "nearest.tsv").write_text(lines, "utf-8")
    log.info("%d words, %d bytes", len(found), len(lines))


def export(options: argparse.Namespace) -> None:
    """Write DIR/teacher from the averages: networks in float16, scheduler, words."""
    made, folder = make_pupil(options, None), options.out / "teacher"
    networks = made.average.module.cpu().half()
    networks["denoiser"].save_pretrained(folder / "transformer")
    networks["text"].save_pretrained(folder / "text_encoder")
    config = folder / "text_encoder" / "config.json"  # transformers would load it in half precision by itself
    config.write_text(config.read_text("utf-8").replace('"float16"', '"float32"'), "utf-8")
    codec: Any = PatchCodec.from_pretrained(options.out / "codec").half()
    codec.register_to_config(_name_or_path="")  # not a folder of this machine
    codec.save_pretrained(folder / "vae")
    pupil.make_scheduler().save_pretrained(folder / "scheduler")
    parts = {
        "transformer": ["splatdistill", "ViewTransformer"],
        "vae": ["splatdistill", "PatchCodec"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "scheduler": ["diffusers", "DDIMScheduler"],
    }
    index = {"_class_name": "ViewPrior", "family": FAMILY, "step": made.step} | parts
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", "utf-8")
    told = phrases.describe_vocabulary(all_entries(options.bundle))
    told |= {"words": list(word_numbers(options.out)), "pairs": learned_pairs(told["things"])}
    told |= {"colors": list(COLORS), "sizes": list(phrases.SIZES)}
    (folder / "vocabulary.json").write_text(json.dumps(told, indent=0) + "\n", "utf-8")
    Pages.load(options.out).export(whole_shelf(options), folder / album.FILE, options.quality, options.models)
    for name in ("nearest.tsv", *(f"{JUDGE}/{part}" for part in (WEIGHTS, TOLD, TRUTH))):
        if (options.out / name).is_file():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copy(options.out / name, folder / name)
    log.info("%s: step %d", folder, made.step)


@torch.no_grad()
def sheet(options: argparse.Namespace) -> None:
    """Draw four views of each of some texts with DIR/teacher, 50 steps, guidance 4: DIR/sheet.png."""
    from PIL import Image

    from splatdistill.guidance.core import sample
    from splatdistill.priors import load_prior
    from splatdistill.priors.base import cfg
    from splatdistill.scene.cameras import orbit

    prior = load_prior(options.out / "teacher", options.device)
    texts = options.texts or list(SHOWN)
    rows = []
    for number, text in enumerate(texts):
        cameras = orbit([20, 110, 200, 290], 15, 3.0, 42.0, SIZE, SIZE)
        cond = cfg(prior.embed([""] * 4), prior.embed([text] * 4), options.guidance)
        cond = prior.with_cameras(cond, cameras, torch.ones(4, 3))
        noise = torch.randn(4, *prior.latent_shape, generator=torch.Generator().manual_seed(number))
        pictures = prior.decode(sample(prior, cond, noise, steps=options.steps))
        rows.append(torch.cat(list(pictures.cpu()), 2))
    rows += [torch.ones_like(rows[0])] * (-len(rows) % 4)
    drawn = torch.cat([torch.cat(rows[i::4], 1) for i in range(4)], 2)
    Image.fromarray(to_uint8(drawn.permute(1, 2, 0)).numpy()).save(options.out / "sheet.png")


def pack(options: argparse.Namespace) -> None:
    """Pack shards of pictures, and the pages, for a machine that cannot render: DIR/*.pack, DIR/album.npz."""
    paths = sorted((options.out / "pictures").glob("*.npz"))[options.first :][: options.shards]
    target = options.out / f"pictures-{options.first:05d}.pack"
    log.info("%d scenes", shards.pack(paths, target))
    Pages.load(options.out).export(whole_shelf(options), options.out / album.FILE, options.quality)


def unpack(options: argparse.Namespace) -> None:
    """Unpack the pictures of DIR/*.pack, and the pages of DIR/album.npz."""
    (options.out / "pictures").mkdir(exist_ok=True)
    packs = sorted(options.out.glob("*.pack"))
    log.info("%d shards", shards.unpack(packs, options.out / "pictures", options.workers))
    packed = Album.load(options.out / album.FILE)
    read = shards.spread(album.pictures_of, packed.strips, options.workers)
    unpacked = map(album.Page, read, packed.halves)
    Pages.save(options.out, unpacked, packed.ids, drawn_pairs(options.out), options.workers)


STAGES = {
    "render": render, "pages": pages, "adopt": adopt, "encode": encode, "decode": decode, "train": train,
    "table": table, "export": export, "sheet": sheet, "pack": pack, "unpack": unpack,
}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Parse, run one stage."""
    parser = argparse.ArgumentParser(prog="python -m splatdistill.teaching.teach", description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--out", type=Path, required=True, help="folder for everything that is made")
    parser.add_argument("--bundle", type=Path, default=Path("assets"), help="folder of assets.json")
    parser.add_argument("--first", type=int, default=0, help="number of the first shard to make")
    parser.add_argument(
        "--shards", type=int, default=100, help="shards to render or pack, of 256 scenes each"
    )
    parser.add_argument("--run", default="run", help="subfolder of what is trained")
    parser.add_argument("--most", type=int, help="shards to train on, at most")
    parser.add_argument("--until", type=int, default=1_000_000, help="step to train to")
    parser.add_argument("--fall", type=int, default=0, help="last steps that lower the learning rates to 0")
    parser.add_argument("--minutes", type=float, default=5.0, help="between two checkpoints")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="end training after so long")
    parser.add_argument("--fall-seconds", type=float, default=0.0, help="like --fall, for --seconds")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--workers", type=int, default=1, help="processes of pages, encode and unpack")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--decoder-steps", type=int, default=2000, help="of the stage decode")
    parser.add_argument("--models", type=int, default=3, help="pages of each noun in the album, at most")
    parser.add_argument("--quality", type=int, default=45, help="of the album's WebP files")
    parser.add_argument("--teacher", type=Path, default=REAL, help="folder that adopt takes weights from")
    parser.add_argument("--encoder", type=Path, help="sentence encoder of the table, in transformers' layout")
    parser.add_argument("--texts", nargs="*", help="what the sheet shows; default: a choice")
    parser.add_argument("--guidance", type=float, default=4.0, help="of the sheet")
    parser.add_argument("--steps", type=int, default=50, help="of the sheet")
    for name, kind in (
        ("batch", int), ("matrix_rate", float), ("learning_rate", float), ("outer_width", int),
        ("outer_layers", int), ("width", int), ("layers", int), ("patch_size", int),
    ):  # fmt: skip
        parser.add_argument("--" + name.replace("_", "-"), type=kind, help="of a new run; see PupilSettings")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)

    def command() -> int:
        options.out.mkdir(parents=True, exist_ok=True)
        STAGES[options.stage](options)
        return 0

    return exit_status(command, "interrupted")


if __name__ == "__main__":
    sys.exit(main())
