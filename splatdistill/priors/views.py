"""The prior of the teacher of real objects, conditioned on cameras, and on text, a picture, or both."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from splatdistill.ops.transfer import upload
from splatdistill.priors import album
from splatdistill.priors.album import OFFSET, SHOWN, Album
from splatdistill.priors.base import Adaptable, Conditioning, cfg, cut_to_fit, text_branch
from splatdistill.priors.folders import Folder
from splatdistill.priors.graphs import Graphed
from splatdistill.priors.latent import LatentPrior, Pictured
from splatdistill.priors.lora import taught
from splatdistill.priors.networks import load_network
from splatdistill.priors.reading import BETWEEN, JOINING, MAX_WORDS, Vocabulary, canonical
from splatdistill.priors.recognition import Sighting, likely, recognized
from splatdistill.priors.view_transformer import ViewTransformer, describe_cameras, patch_rays
from splatdistill.priors.words import COLORS
from splatdistill.scene.cameras import Cameras, orbit
from splatdistill.scene.pictures import Reference

PART = "transformer"  # the denoiser's folder
VIEWS = 4  # of a scene that are denoised together
TOLD = 8  # of each view: azimuth, elevation, distance, field of view, relative, background
ATTENTION = ("enter", "leave", "words")  # the linear maps of a ViewTransformer's attention
FRONT = (0.0, 15.0, 3.0, 42.0)  # the default camera: azimuth, elevation, distance, field of view; in degrees


class ViewPrior(Pictured, LatentPrior):
    """The teacher of real objects: a transformer told of cameras and backgrounds; see `LatentPrior.load`.

    Samples come in groups of VIEWS of one scene; without cameras, each is alone and from the front. Beside
    each view the network sees the nearest pictures of what the text names, from the album in the folder;
    with `condition_on`, those of what the given picture shows, or where the album has no such thing, the
    picture itself; azimuths are then relative to it. The first row of a text's hidden states has the numbers
    of its pages: one, or several models of a thing, of which a scene gets the one nearest to its noisy views;
    and those of the colors that its things have there.

    seed: which of a thing's models is the first; models: how many of them a text means; sighting: what of
    the album the picture shows, if anything.
    """

    group = VIEWS
    view_words = False
    reads_picture = True
    seed, models = 0, 1
    sighting: Sighting | None = None

    @classmethod
    def reads(cls, folder: Folder) -> bool:
        """Return whether the denoiser is a ViewTransformer, in a folder of that part's name."""
        return folder.json(f"{PART}/config.json").get("_class_name") == ViewTransformer.__name__

    def __init__(
        self,
        name: str,
        unet: Any,
        vae: Any,
        scheduler: Any,
        vocabulary: Vocabulary,
        text_encoder: Any,
        pictures: Album | None = None,
    ) -> None:
        super().__init__(name, unet, vae, text_encoder, None, scheduler)
        whole = torch.cat([torch.tensor([self.clean_alpha_bar]).double(), self.alphas_cumprod.cpu()])
        self._alpha_bars = whole.to(
            self.device, torch.float32
        )  # of t = -1, 0, 1, ...: a graph waits for no CPU
        self.reader, self.album = vocabulary, pictures
        self.vocabulary = frozenset(vocabulary.words)

    @classmethod
    def check(cls, folder: Folder) -> None:
        """Raise ValueError where the small files show that it cannot be loaded."""
        super().check(replace(folder, place=PART))

    @classmethod
    def load(cls, folder: Folder, device: torch.device | str, dtype: torch.dtype | None) -> Self:
        """Load a folder in diffusers' layout whose denoiser is in transformer/; see `LatentPrior.load`."""
        return super().load(replace(folder, place=PART), device, dtype)

    @classmethod
    def _load_unet(cls, folder: Folder, dtype: torch.dtype) -> Any:
        return load_network(folder.root, PART, dtype)

    @classmethod
    def _load_reader(cls, folder: Folder, device: torch.device | str) -> dict[str, Any]:
        text_encoder = load_network(folder.root, "text_encoder", torch.float32).to(device)
        path = folder.root / album.FILE
        pictures = Album.load(path) if path.is_file() else None
        return {
            "text_encoder": text_encoder,
            "vocabulary": Vocabulary.load(folder.root).with_taught(taught(folder.lora)),
            "pictures": pictures,
        }

    def alone(self) -> Self:
        """Return a copy that draws single views from the front."""
        single = copy.copy(self)
        single.group = 1
        single._denoise = Graphed(single.network)
        return single

    def with_taught(self, phrases: Sequence[str]) -> Self:
        """Return a copy, sharing its networks, in which these phrases name new things."""
        told = copy.copy(self)
        told.reader = self.reader.with_taught(phrases)
        return told

    def for_run(self, seed: int, models: int) -> Self:
        """Return a copy, sharing its networks, whose texts mean the models that this seed chooses."""
        chosen = copy.copy(self)
        chosen.seed, chosen.models = seed, models
        chosen._denoise = Graphed(chosen.network)
        return chosen

    @torch.no_grad()
    def condition_on(self, reference: Reference) -> Self:
        """Return a copy of the prior, sharing its networks, conditioned on this picture."""
        shown: Self = super().condition_on(reference)
        shown.sighting = seen = shown._recognize()
        if seen is not None:
            shown.remarks = (
                f"the picture is taken for the '{seen.noun}' that this teacher knows, "
                f"from {math.degrees(seen.azimuth) % 360:.0f} degrees: the other sides are that one's",
            )
        return shown

    def _recognize(self) -> Sighting | None:
        """Return what of the album the picture shows, if anything."""
        if self.album is None or self._reference is None:
            return None
        reference, single = self._reference.to("cpu"), self.alone()
        single._denoise = single.network  # a few calls: graphs are not worth it
        placed = orbits(reference.camera, float(reference.camera.azimuth_deg[0]))
        picture = torch.cat([reference.rgb * reference.alpha, reference.alpha])
        clean = self.encode(reference.before(torch.ones(1, 3)).to(self.device))
        rng = torch.Generator().manual_seed(0)
        noise = torch.randn(clean.shape, generator=rng).to(clean)

        def surprise(guesses: Sequence[Sighting | None], levels: Sequence[float]) -> Tensor:
            count, total = len(guesses), torch.zeros(len(guesses))
            nothing = self.embed([""] * count)
            cameras = placed.repeat(count, 1)
            cameras[:, 0] += torch.tensor([0.0 if guess is None else guess.azimuth for guess in guesses])
            told = torch.cat([cameras, torch.zeros(count, 1), torch.ones(count, 3)], 1)
            extra = torch.cat([told.to(self.device), self._of_sightings(guesses, told)], 1)
            cond = replace(cfg(nothing, nothing, 1.0), extra=torch.stack([extra, extra]))
            for level in levels:
                t = int(level * len(self.alphas_cumprod))
                a, s = float(self.alphas_cumprod[t].sqrt()), float((1 - self.alphas_cumprod[t]).sqrt())
                z_t = (a * clean + s * noise).expand(count, -1, -1, -1)
                drawn = single.predict(z_t, torch.full((count,), t), cond)[1]
                total += (drawn - (a * noise - s * clean)).square().mean((1, 2, 3)).cpu()
            return total

        return recognized(likely(self.album, picture, placed[0, 1:]), surprise)

    def understand(self, text: str) -> tuple[str, list[str]]:
        """Return a text in the words of the vocabulary; see `Prior.understand`."""
        return self.reader.understand(text, strict=False)

    def word_places(self, text: str, wanted: Sequence[str]) -> tuple[list[int], list[int]]:
        """Return the places of some words in a text as it is read, and of others, joining ones apart."""
        read = self.understand(text)[0].split()
        sought = set(" ".join(self.understand(word)[0] for word in wanted).split())
        mine = [place for place, word in enumerate(read) if word in sought]
        joining = {*JOINING, *" ".join(BETWEEN).split()}
        return mine, [place for place, word in enumerate(read) if word not in sought | joining]

    def fit(self, text: str, suffixes: Sequence[str] = ("",)) -> str:
        """Return `text`, cut so that all of it is read; views and backgrounds are not read as words."""
        return cut_to_fit(text, ("",), lambda whole: len(canonical(whole).split()) < MAX_WORDS)

    @torch.no_grad()
    def embed(self, texts: list[str]) -> Tensor:
        """Return hidden states [n,1+L,D] of the text encoder, float32; other words as `understand` has them.

        The first of them begins with the numbers of the text's pages, and ends with those of two colors.
        """
        return self.read(texts, self.text_encoder)

    def read(self, texts: list[str], text_encoder: Any) -> Tensor:
        """Return hidden states as `embed`, of any encoder of these words, with gradient."""
        read = {text: self.understand(text)[0] for text in dict.fromkeys(texts)}
        ids = torch.tensor([self.reader.numbers(read[text]) for text in texts], device=self.device)
        hidden = text_encoder(input_ids=ids)[0].float()
        first = torch.full_like(hidden[:, :1], album.NOTHING)
        for row, text in zip(first, texts, strict=True):
            pages, colors = self._pages(read[text])
            row[0, : len(pages)], row[0, -len(colors) :] = torch.tensor(pages), torch.tensor(colors)
        return torch.cat([first, hidden], 1)

    def _pages(self, text: str) -> tuple[list[float], list[float]]:
        """Return the numbers of the pages of a canonical text, and of the colors of its two things."""
        colors = [album.NOTHING] * 2
        if self.album is None:
            return [], colors
        things, relation = self.reader.scene(text)
        found = [self.album.find(noun, words) for noun, words in things]
        for place, (_, words) in enumerate(things):
            named = [number for number, name in enumerate(COLORS) if name in words]
            colors[place] = float((named or [album.NOTHING])[0])
        return self.album.numbers(found, relation, self.seed, self.models), colors

    def with_cameras(self, cond: Conditioning, cameras: Cameras, background: Tensor) -> Conditioning:
        """Return the conditioning with cameras [B], backgrounds [B,3], and the pictures beside the views."""
        branches, reference, sighting = len(cond.embeddings), self._reference, self.sighting
        first = 0.0 if reference is None else float(reference.camera.azimuth_deg[0])
        placed, behind = orbits(cameras, first), background.to(cameras.distance)
        if sighting is not None:  # the front of what is seen is known
            placed[:, 0] += sighting.azimuth
        relative = torch.full_like(placed[:, :1], float(reference is not None and sighting is None))
        known = torch.cat([placed, relative, behind], 1).cpu()
        told = upload([known], self.device)[0].expand(branches, -1, -1)
        if reference is None:
            asked = [
                [[(row[k], *row[-2:]) for row in branch] for k in range(self.models)]
                for branch in cond.embeddings[:, :, 0].tolist()
            ]
            shown = [torch.cat([self._of_page(page, known) for page in pages], 1) for pages in asked]
        else:
            if sighting is None:
                beside = self._of_picture(reference, orbits(reference.camera, first), told[0])
            else:
                beside = self._of_sightings([sighting] * len(known), known)
            shown = [torch.zeros_like(beside), *[beside] * (branches - 1)]
        return replace(cond, extra=torch.cat([told, torch.stack(shown)], 2))

    def _of_page(self, numbers: Sequence[Sequence[float]], told: Tensor) -> Tensor:
        """Return offsets and latents, flat [B, SHOWN * (OFFSET + C * h * w)], of B views' pages.

        numbers: of each page, and of its two colors; told [B, TOLD]: cameras and backgrounds, on the CPU.
        """
        pages = [self._picker(*map(int, row)) for row in numbers]
        if not any(pages):  # nothing is looked at where the offsets are zero
            return torch.zeros(len(told), SHOWN * (OFFSET + math.prod(self.latent_shape)), device=self.device)
        known = (told[:, :4], told[:, 5:], self.encode, self.image_size, self.device)
        latents, placed = album.beside(pages, *known)
        return torch.cat([placed.flatten(1), latents.flatten(1)], 1)

    def _of_sightings(self, sightings: Sequence[Sighting | None], told: Tensor) -> Tensor:
        """Return what `_of_page` does, for things that are seen at their own sizes."""
        numbers = [album.NOTHING if sighting is None else sighting.number for sighting in sightings]
        zooms = torch.tensor([0.0 if sighting is None else sighting.zoom for sighting in sightings])
        nearer = torch.cat([told[:, :2], told[:, 2:3] * (-zooms).exp()[:, None], told[:, 3:]], 1)
        return self._of_page([(number, album.NOTHING, album.NOTHING) for number in numbers], nearer)

    def _picker(self, number: int, *colors: int) -> Callable[[Sequence[int]], np.ndarray] | None:
        if self.album is None or number < 0:
            return None
        page = self.album.page(number, colors)
        return lambda picked: page.pictures[picked]

    def _of_picture(self, reference: Reference, orbit: Tensor, told: Tensor) -> Tensor:
        """Return what `_of_page` does, for a given picture and its camera [1, 4]."""
        latents = self.encode(reference.before(told[:, 5:]))
        latents, placed = album.beside_picture(latents, orbit.to(told), told[:, :4])
        return torch.cat([placed.flatten(1), latents.flatten(1)], 1)

    @torch.no_grad()
    def predict(self, z_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Return raw float32 outputs [R,B,C,h,w] as `LatentPrior` does; without cameras, of single views."""
        placed, cond = self._placed(cond, len(z_t))
        return LatentPrior.predict(placed, z_t, t, cond)

    def _placed(self, cond: Conditioning, count: int) -> tuple[Self, Conditioning]:
        """Return this prior and the conditioning of `count` samples: of single views where cameras miss."""
        if cond.extra is not None:
            return self, cond
        single = self if self.group == 1 else self.alone()
        azimuth, elevation, distance, fov = FRONT
        cameras = orbit([azimuth] * count, elevation, distance, fov, self.image_size, self.image_size)
        return single, single.with_cameras(cond, cameras, torch.ones(count, 3))

    def adaptable(self) -> Adaptable:
        """Return a copy of the transformer that may be adapted; see `LatentPrior.adaptable`."""
        twin = self.twin()

        def predict(z_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
            placed, cond = twin._placed(cond, len(z_t))
            return text_branch(placed.network, z_t, t, cond)

        return Adaptable(twin.unet, predict, ATTENTION, None)

    def network(self, z_t: Tensor, t: Tensor, embeddings: Tensor, *extra: Tensor) -> Tensor:
        """Return raw float32 outputs [n,C,h,w] at z_t [n,C,h,w], t [n], texts [n,1+L,D] and extra [n,...]."""
        (known,), views = extra, self.group
        told, rest = known[:, :TOLD].float(), known[:, TOLD:]
        azimuth, elevation, distance, fov, relative = told[:, :5].unbind(1)
        alpha_bar = self._alpha_bars[t.clamp(min=-1) + 1]
        pages = rest.unflatten(1, (-1, SHOWN * (OFFSET + z_t[0].numel()))).float()  # [n, models, ...]
        page = pages[:, 0] if pages.shape[1] == 1 else nearest_page(z_t, alpha_bar, pages, views)
        placed, shown = page[:, : SHOWN * OFFSET], page[:, SHOWN * OFFSET :]
        return self.unet(
            z_t.float(),
            t,
            alpha_bar,
            embeddings[::views, 1:].to(self.dtype),
            describe_cameras(azimuth, elevation, distance, fov, relative),
            patch_rays(azimuth, elevation, distance, fov, self.unet.side),
            told[:, 5:],
            shown.unflatten(1, (SHOWN, *z_t.shape[1:])),
            placed.unflatten(1, (SHOWN, OFFSET)),
            views,
        )


def nearest_page(z_t: Tensor, alpha_bar: Tensor, pages: Tensor, views: int) -> Tensor:
    """Return, of several pages [n, models, ...] of each view, the likeliest one of its scene, [n, ...].

    The pictures nearest to the views, with noise, are the components of a Gaussian mixture (the exact score
    of a few pictures): the one nearest to z_t [n, C, h, w] in all `views` of a scene explains it best.
    """
    start = SHOWN * OFFSET
    first = pages[:, :, start : start + z_t[0].numel()]
    apart = (z_t.flatten(1).float()[:, None] - alpha_bar.sqrt()[:, None, None] * first).square().sum(2)
    apart = apart.masked_fill(pages[:, :, 0] == 0, math.inf)
    best = apart.unflatten(0, (-1, views)).sum(1).argmin(1).repeat_interleave(views)  # [n]
    return pages[torch.arange(len(pages), device=pages.device), best]


def orbits(cameras: Cameras, first_deg: float) -> Tensor:
    """Return azimuth, from the first one's, and elevation in radians, distance, and field of view, [B, 4]."""
    turned = (cameras.azimuth_deg - first_deg).deg2rad()
    return torch.stack(
        [turned, cameras.elevation_deg.deg2rad(), cameras.distance, cameras.fov_deg.deg2rad()], 1
    )
