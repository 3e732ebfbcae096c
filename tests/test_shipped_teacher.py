"""The weights that ship: their size, how they load, and that they draw what the words say."""

import copy
import json
import math
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from splatdistill.guidance.core import sample
from splatdistill.priors import load_prior
from splatdistill.priors.album import Album
from splatdistill.priors.base import cfg
from splatdistill.priors.loading import ASSETS
from splatdistill.scene.cameras import orbit
from splatdistill.scene.pictures import Reference


def test_the_weights_are_small_and_no_pickles() -> None:
    every = [path for path in ASSETS.rglob("*") if path.is_file()]
    assert not [path.name for path in every if path.suffix in (".bin", ".pt", ".ckpt", ".pkl")]
    configs = [json.loads(path.read_text("utf-8")) for path in every if path.name == "config.json"]
    assert not [config["_name_or_path"] for config in configs if config.get("_name_or_path")]
    assert sum(path.stat().st_size for path in every) <= 64 * 2**20


def test_the_real_teacher_is_the_default_and_another_can_be_named() -> None:
    """Here another one is named for all tests: tests/conftest.py."""
    code = "from splatdistill.config.presets import DEFAULT; print(DEFAULT)"
    environment = {name: value for name, value in os.environ.items() if name != "SPLATDISTILL_PRIOR"}
    for named, expected in (("", "real"), ("sd21", "sd21")):
        command = [sys.executable, "-c", code]
        own = environment | {"SPLATDISTILL_PRIOR": named}
        told = subprocess.run(command, env=own, capture_output=True, text=True, check=True)
        assert told.stdout.strip() == expected


@pytest.fixture(scope="module")
def prior() -> Any:
    return load_prior("real", dtype=torch.float32)


def test_every_name_that_is_taken_for_another_leads_to_a_thing(prior: Any) -> None:
    words = prior.reader
    assert set(words.nearest.values()) <= set(words.names) and set(words.names.values()) == set(words.things)
    assert len(words.things) >= 500 and {"hamburger", "palm tree", "car"} <= set(words.names)


@torch.no_grad()
def test_the_autoencoder_keeps_plain_pictures(prior: Any) -> None:
    pictures = torch.full((2, 3, prior.image_size, prior.image_size), 0.5)
    pictures[0, :, 40:88, 40:88] = torch.tensor([0.85, 0.09, 0.09])[:, None, None]
    assert (prior.decode(prior.encode(pictures)) - pictures).abs().mean() < 0.03


@torch.no_grad()
def test_the_real_teacher_sees_the_things_of_the_texts_in_noise(prior: Any) -> None:
    cameras = orbit([30.0, 120.0, 210.0, 300.0], 15.0, 3.0, 42.0, prior.image_size, prior.image_size)
    texts = ["hamburger", "palm tree", "red car", "blue car"]
    noise = torch.randn(4, *prior.latent_shape, generator=torch.Generator().manual_seed(0))
    seen = []
    for text in texts:
        cond = cfg(prior.embed([""] * 4), prior.embed([text] * 4), 1.0)
        cond = prior.with_cameras(cond, cameras, torch.ones(4, 3))
        seen.append(prior.decode(sample(prior, cond, noise, steps=4))[0])
    burger, palm, red, blue = (((picture < 0.9).any(0), picture) for picture in seen)
    heights = [mask.any(1).sum() / mask.any(0).sum() for mask, _ in (burger, palm)]
    assert heights[0] < 1 < heights[1]  # the one is flat, the other tall
    for (mask, picture), channel in ((red, 0), (blue, 2)):
        assert int(picture[:, mask].mean(1).argmax()) == channel


def test_the_real_teacher_knows_a_thing_of_its_album_from_one_picture(prior: Any) -> None:
    """And not a thing that is none of them. One in forty of the album is there, which is quicker."""
    whole, few = prior.album, copy.copy(prior)
    kept = sorted({*whole.find("acoustic guitar", []), *range(0, len(whole.ids), 40)})
    told = ([getattr(whole, name)[k] for k in kept] for name in ("ids", "nouns", "phrases"))
    few.album = Album([whole.strips[k] for k in kept], whole.halves[kept], *map(tuple, told))
    number = few.album.find("acoustic guitar", [])[0]
    side = few.album.page(number).pictures.shape[1]
    seen = torch.from_numpy(few.album.page(number).pictures[2]).permute(2, 0, 1) / 255
    camera = orbit([0.0], 2.0, 3.0, 42.0, side, side)
    known = few.condition_on(Reference(seen[:3] / seen[3:].clamp(min=1e-3), seen[3:], camera))
    assert known.sighting.number == number and "guitar" in known.remarks[0]
    assert math.cos(known.sighting.azimuth - math.radians(60)) > math.cos(math.radians(10))
    line = torch.linspace(-1, 1, side)
    y, x = torch.meshgrid(line, line, indexing="ij")
    star = ((x.square() + y.square()).sqrt() < 0.5 + 0.25 * (5 * torch.atan2(y, x)).sin()).float()[None]
    stripes = torch.stack([(9 * x).sin(), (9 * y).cos(), (7 * (x + y)).sin()]) / 2 + 0.5
    assert few.condition_on(Reference(stripes, star, camera)).sighting is None
