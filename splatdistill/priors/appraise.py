"""What a teacher is, what it needs and what it asks, from its files' headers; no weights are read."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from splatdistill.priors.base import Prior
from splatdistill.priors.folders import Folder, header, number
from splatdistill.priors.hub import UNUSED
from splatdistill.priors.latent import default_dtype, vae_dtype
from splatdistill.priors.loading import locate, reader_of, user_errors
from splatdistill.priors.pipeline import KEPT
from splatdistill.priors.single import TEXT, UNET

TENSORS = 24  # of the size of a picture at the autoencoder's first width that its backward pass keeps, about
DENOISERS = ("unet", "transformer")
PREFIXES = {"unet": UNET, "vae": "first_stage_model.", "text_encoder": TEXT}  # in a single file
SDI_EVALUATIONS = 8  # of the network in a step of sdi, on average over a run: seven of the inversion, and one


@dataclass(frozen=True)
class Part:
    """A network of a teacher: how many parameters it has, and the bytes of the largest shard."""

    parameters: int
    files: int


@dataclass(frozen=True)
class Appraisal:
    """What is known of a teacher.

    Args:
        reader: the class that reads it, in the words of its first line.
        parts: its networks.
        pixels: the side of its pictures, or 0 where the files do not say.
        views: pictures that it denoises together.
        memory: bytes that a step of so many views needs, about, on the device and in its own precision.
        pictured: those of them that are for the pictures, and grow with their area.
        halved: the same in bfloat16.
        reading: further bytes while large text encoders read.
        licence: what the folder's README says, or an empty text.
    """

    reader: str
    parts: dict[str, Part]
    pixels: int
    views: int
    memory: int
    pictured: int
    halved: int
    reading: int
    licence: str

    @property
    def denoiser(self) -> Part:
        """The network that a step evaluates."""
        return next((self.parts[name] for name in DENOISERS if name in self.parts), Part(0, 0))


def appraise(name: str, device: torch.device | str = "cpu") -> Appraisal:
    """Appraise a teacher on a device; raises UserError for one that is not there or cannot be loaded."""
    folder = locate(name)
    reader = reader_of(folder)
    with user_errors(f"prior '{name}'", folder.root):
        reader.check(folder)
    parts = _parts(folder)
    encoders = sum(value.parameters for part, value in parts.items() if part.startswith("text_encoder"))
    large = 4 * encoders > KEPT
    pixels = _pixels(folder, reader)
    width = next(iter(folder.json("vae/config.json").get("block_out_channels") or [0]))

    def for_pictures(dtype: torch.dtype) -> int:
        return reader.group * TENSORS * pixels**2 * width * vae_dtype(dtype, device).itemsize

    def needed(dtype: torch.dtype) -> int:
        beside = vae_dtype(dtype, device).itemsize
        each = {part: dtype.itemsize for part in parts if part.startswith((*DENOISERS, "adapter"))}
        kept = sum(
            value.parameters * (each | {"vae": beside}).get(part, 4)
            for part, value in parts.items()
            if not (large and part.startswith("text_encoder"))
        )
        return kept + for_pictures(dtype)

    summary = (reader.__doc__ or reader.__name__).strip().splitlines()[0].partition("; see ")[0]
    return Appraisal(
        reader=summary,
        parts=parts,
        pixels=pixels,
        views=reader.group,
        memory=needed(default_dtype(device)),
        pictured=for_pictures(default_dtype(device)),
        halved=needed(torch.bfloat16),
        reading=2 * encoders if large else 0,
        licence=licence(folder.root),
    )


def _parts(folder: Folder) -> dict[str, Part]:
    """Return the networks that are loaded of a folder, by the headers of their files."""
    if folder.single is not None:
        names = {part: _parameters(folder.single, prefix) for part, prefix in PREFIXES.items()}
        return {part: Part(count, 1) for part, count in names.items() if count}
    parts = {path.name: part for path in sorted(folder.root.iterdir()) if (part := _part(path)) is not None}
    parts = {part: value for part, value in parts.items() if part not in UNUSED}
    if folder.place in parts:  # other denoisers beside it are not loaded
        parts = {
            key: value for key, value in parts.items() if key == folder.place or not key.startswith("unet")
        }
    if folder.adapter is not None:
        parts["adapter"] = Part(_parameters(folder.adapter), 1)
    return parts


def _part(folder: Path) -> Part | None:
    """Count the parameters in a folder by the headers of its safetensors; None where there are none."""
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    half = [path for path in files if ".fp16" in path.name]
    files = half or [path for path in files if ".fp16" not in path.name]
    counts = [_parameters(path) for path in files]
    return Part(sum(counts), len(files)) if counts else None


def _parameters(path: Path, prefix: str = "") -> int:
    """Count the numbers in a safetensors file, of those tensors whose names begin with the prefix."""
    named = {name: value for name, value in (header(path) or {}).items() if name != "__metadata__"}
    tensors = [value for name, value in named.items() if name.startswith(prefix)]
    return sum(math.prod(tensor["shape"]) for tensor in tensors)


def _pixels(folder: Folder, reader: type[Prior]) -> int:
    """Return the side of a teacher's pictures as its files say it, and its family cuts it; 0 if unknown."""
    told = folder.json("model_index.json").get("default_sample_size")
    if isinstance(told, int):
        return told
    config = folder.denoiser or folder.json("transformer/config.json")
    vae = folder.json("vae/config.json")
    factor = 2 ** (len(vae.get("block_out_channels") or vae.get("encoder_block_out_channels") or [0]) - 1)
    side = config.get("sample_size", config.get("image_size"))  # the second is MVDream's name
    if side is None:  # a transformer of patches of any number, as FLUX.2's
        factor *= 2
        side = number(vae, "sample_size") // factor
    side = side[0] if isinstance(side, list) and side else side
    return min(side, getattr(reader, "largest", side)) * factor if isinstance(side, int) else 0


def licence(root: Path) -> str:
    """Return the licence that a folder's README.md names in its front matter; empty if none."""
    path = root / "README.md"
    text = path.read_text("utf-8", "replace")[:10_000] if path.is_file() else ""
    front = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    said = dict(re.findall(r"^(license(?:_name)?):\s*(\S+)", front[1], re.MULTILINE)) if front else {}
    return str(said.get("license_name") or said.get("license", ""))


def lines(found: Appraisal, free: int) -> list[tuple[str, bool, str, str]]:
    """Return rows of a table: what, whether it is well, what was found, and what to do about it.

    free: bytes of memory.
    """

    def size(count: float) -> str:
        return f"{count / 1e9:.2f} billion" if count >= 1e9 else f"{count / 1e6:.1f} million"

    rows = [("teacher", True, found.reader, "")]
    rows += [(part, True, f"{size(value.parameters)} parameters", "") for part, value in found.parts.items()]
    if found.pixels:
        together = f"{found.views} views together of " if found.views > 1 else ""
        rows.append(("pictures", True, f"{together}{found.pixels} pixels", ""))
    need, peak = found.memory, found.memory + found.reading
    told = f"about {need / 2**30:.1f} GiB a step of {found.views} view{'s' * (found.views > 1)}" + (
        f", {peak / 2**30:.1f} GiB while its text encoders read" if found.reading else ""
    )
    less = found.halved + found.reading
    fits = "take a smaller teacher, or a GPU with more memory"
    if less < peak and less <= free:
        fits = f"with prior.dtype=bfloat16 it needs {less / 2**30:.1f} GiB, and fits"
    if peak > free > peak - found.pictured:
        side = found.pixels * math.sqrt((free - peak + found.pictured) / found.pictured)
        fits += f"; in this precision pictures of {64 * int(side / 64)} pixels would"
    rows.append(("memory", peak <= free, f"{told}; {free / 2**30:.1f} GiB are free", fits))
    work = 2 * 2 * SDI_EVALUATIONS * found.denoiser.parameters
    cost = f"{SDI_EVALUATIONS} evaluations of two branches with sdi, {work / 1e9:,.1f} GFLOP for each token"
    rows.append(("cost of a step", True, cost, ""))
    rows.append(
        ("licence", bool(found.licence), found.licence or "not said in the folder", "see where it is from")
    )
    return rows
