import json
import math
import shutil
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import COLORS, THINGS, with_two_models

from splatdistill.config.load import load, resolve
from splatdistill.config.presets import family_of
from splatdistill.errors import UserError
from splatdistill.folder import CONFIG, RECORD
from splatdistill.priors import album, load_prior
from splatdistill.priors.base import cfg
from splatdistill.priors.loading import probe, words_of
from splatdistill.priors.reading import MAX_WORDS
from splatdistill.priors.recognition import Sighting
from splatdistill.priors.views import OFFSET, SHOWN, TOLD, ViewPrior
from splatdistill.scene.cameras import orbit
from splatdistill.scene.pictures import Reference
from splatdistill.training.progress import NullWatcher
from splatdistill.training.run import make_run

SIZE, CHANNELS = 64, 6


@pytest.fixture(scope="module")
def folder(views, tmp_path_factory):
    """Return a whole teacher of random weights, tiny, without an album."""
    path = tmp_path_factory.mktemp("teacher") / "it"
    return shutil.copytree(views, path, ignore=shutil.ignore_patterns(album.FILE))


@pytest.fixture(scope="module")
def prior(folder):
    return load_prior(folder, dtype=torch.float32)


def ring(count: int = 4, first: float = 0.0):
    return orbit([first + 360.0 / count * i for i in range(count)], 15.0, 3.0, 42.0, SIZE, SIZE)


def condition(prior, text="red car", count: int = 4, first: float = 0.0, g: float = 3.0, background=1.0):
    cond = cfg(prior.embed([""] * count), prior.embed([text] * count), g)
    return prior.with_cameras(cond, ring(count, first), torch.full((count, 3), background))


def noise(count: int = 4):
    return torch.randn(count, CHANNELS, 8, 8, generator=torch.Generator().manual_seed(0))


def test_the_folder_says_what_it_is(prior):
    assert isinstance(prior, ViewPrior)
    assert prior.latent_shape == (CHANNELS, 8, 8) and prior.image_size == SIZE
    assert prior.group == 4 and not prior.view_words and prior.prediction_type == "v_prediction"


def test_outputs_depend_on_text_camera_and_background(prior):
    t = torch.full((4,), 500)
    first = prior.predict(noise(), t, condition(prior))
    assert first.shape == (2, 4, CHANNELS, 8, 8) and first.dtype == torch.float32
    assert not torch.allclose(first[0], first[1], atol=1e-4)
    for other in (
        condition(prior, "blue tree"),
        condition(prior, first=30.0),
        condition(prior, background=0.0),
    ):
        assert not torch.allclose(prior.predict(noise(), t, other)[1], first[1], atol=1e-4)


def test_canonical_words_are_all_that_counts(prior):
    plain, dressed = prior.embed(["red car", "A photo of a red car, front view, white background."])
    assert torch.equal(plain, dressed)


def test_groups_do_not_see_each_other(prior):
    t, z = torch.full((8,), 300), noise(8)
    both = prior.predict(z, t, condition(prior, count=8))
    cond = condition(prior, count=8).select(torch.arange(4))
    torch.testing.assert_close(prior.predict(z[:4], t[:4], cond), both[:, :4], atol=1e-4, rtol=1e-4)


def test_without_cameras_each_sample_is_on_its_own(prior):
    cond = cfg(prior.embed([""] * 3), prior.embed(["red car"] * 3), 2.0)
    out = prior.predict(noise(3), torch.full((3,), 500), cond)
    one = prior.predict(noise(3)[:1], torch.full((1,), 500), cond.select(torch.tensor([0])))
    torch.testing.assert_close(out[:, :1], one, atol=1e-4, rtol=1e-4)


def test_the_picture_is_shown_to_the_text_s_branch_alone(prior):
    def picture(value: float) -> Reference:
        return Reference(
            torch.full((3, SIZE, SIZE), value),
            torch.ones(1, SIZE, SIZE),
            orbit(50.0, 10.0, 3.0, 42.0, SIZE, SIZE),
        )

    t = torch.full((4,), 500)
    told = [prior.condition_on(picture(value)) for value in (0.2, 0.9)]
    dark, bright = (shown.predict(noise(), t, condition(shown, first=50.0)) for shown in told)
    assert torch.equal(dark[0], bright[0])
    assert not torch.allclose(dark[1], bright[1], atol=1e-4)


@pytest.fixture(scope="module")
def with_album(views):
    """Return the same teacher with an album of a car."""
    return load_prior(views, dtype=torch.float32)


def test_the_album_is_shown_to_texts_that_name_a_thing_in_it(prior, with_album):
    t = torch.full((4,), 500)
    assert with_album.embed(["red car", "a sedan", "tree", ""])[:, 0, 0].tolist() == [0, 0, -1, -1]
    without, beside = (one.predict(noise(), t, condition(one)) for one in (prior, with_album))
    torch.testing.assert_close(beside[0], without[0])  # the branch without text
    assert not torch.allclose(beside[1], without[1], atol=1e-3)
    tree = (one.predict(noise(), t, condition(one, "tree")) for one in (prior, with_album))
    torch.testing.assert_close(*tree)


def test_what_would_lie_where_no_picture_is_does_not_count(prior):
    """So nothing has to be encoded there."""
    cond, t = condition(prior), torch.full((4,), 500)
    other = cond.extra.clone()
    other[..., TOLD + SHOWN * OFFSET :] = 3.0
    assert not cond.extra[..., TOLD : TOLD + SHOWN * OFFSET].any()
    outputs = (prior.predict(noise(), t, replace(cond, extra=extra)) for extra in (cond.extra, other))
    assert torch.equal(*outputs)


def test_a_picture_of_nothing_that_is_known_takes_the_album_s_place(prior, with_album):
    gray = Reference(torch.full((3, SIZE, SIZE), 0.5), torch.ones(1, SIZE, SIZE), ring(1))
    told = [one.condition_on(gray) for one in (prior, with_album)]
    assert told[1].sighting is None and not told[1].remarks
    t = torch.full((4,), 500)
    torch.testing.assert_close(*(one.predict(noise(), t, condition(one)) for one in told))


def test_of_what_a_picture_shows_the_album_has_the_other_sides(with_album, monkeypatch):
    """It is seen as the text's is, from where the picture was taken."""
    found = Sighting(0, "car", math.radians(70.0), 0.0)
    monkeypatch.setattr("splatdistill.priors.views.recognized", lambda *_: found)
    gray = Reference(
        torch.full((3, SIZE, SIZE), 0.5), torch.ones(1, SIZE, SIZE), orbit(20.0, 15.0, 3.0, 42.0, SIZE, SIZE)
    )
    shown = with_album.condition_on(gray)
    (line,) = shown.remarks
    assert shown.sighting == found and "'car'" in line and "70 degrees" in line
    seen = condition(shown, "car", first=50.0).extra
    torch.testing.assert_close(seen, condition(with_album, "car", first=100.0).extra, atol=1e-5, rtol=1e-5)
    monkeypatch.setattr("splatdistill.priors.views.recognized", lambda *_: replace(found, zoom=0.2))
    larger = condition(with_album.condition_on(gray), "car", first=50.0).extra
    offsets = slice(TOLD, TOLD + SHOWN * OFFSET)
    torch.testing.assert_close(larger[..., :TOLD], seen[..., :TOLD])
    torch.testing.assert_close(larger[..., offsets], seen[..., offsets])
    assert not torch.allclose(larger, seen, atol=1e-3)


def test_the_error_beside_a_page_is_that_of_the_denoiser(with_album, monkeypatch):
    asked = {}

    def ask(guesses, surprise):
        asked["guesses"], asked["errors"] = guesses, surprise([guesses[0], None, guesses[0]], (0.5,))

    monkeypatch.setattr("splatdistill.priors.views.recognized", ask)
    red = torch.tensor([200.0, 30.0, 30.0])[:, None, None].expand(3, SIZE, SIZE) / 255
    alpha = torch.zeros(1, SIZE, SIZE)
    alpha[:, 20:45, 15:50] = 1
    assert with_album.condition_on(Reference(red, alpha, ring(1))).sighting is None
    assert [guess.number for guess in asked["guesses"]] == [0]
    first, alone, again = asked["errors"].tolist()
    assert first == pytest.approx(again, rel=1e-4) and first != pytest.approx(alone, rel=1e-3)


@pytest.fixture
def two_models(with_album):
    """Return the same teacher with a red model of a car and a blue one."""
    return with_two_models(with_album)


def test_a_seed_chooses_among_the_models_of_a_thing(two_models):
    pages = [two_models.for_run(seed, 1).embed(["red car"])[0, 0, :2].tolist() for seed in (0, 1, 2)]
    assert pages == [[0, -1], [1, -1], [0, -1]]
    assert two_models.for_run(1, 3).embed(["car"])[0, 0, :3].tolist() == [1, 0, -1]


def test_of_several_models_a_scene_gets_the_one_nearest_to_its_noisy_views(two_models):
    several = two_models.for_run(0, 2)
    t = torch.full((8,), 100)
    red, blue = (torch.tensor(c) / 255.0 for c in ((200, 30, 30), (30, 30, 200)))
    first = two_models.encode(blue.view(1, 3, 1, 1).expand(4, 3, SIZE, SIZE))
    second = two_models.encode(red.view(1, 3, 1, 1).expand(4, 3, SIZE, SIZE))
    alpha_bar = several.alphas_cumprod[100].float()
    z_t = alpha_bar.sqrt() * torch.cat([first, second]) + (1 - alpha_bar).sqrt() * noise(8)
    drawn = several.predict(z_t, t, condition(several, "car", count=8))
    for part, seed in ((slice(0, 4), 1), (slice(4, 8), 0)):
        alone = two_models.for_run(seed, 1)
        expected = alone.predict(z_t, t, condition(alone, "car", count=8))
        torch.testing.assert_close(drawn[:, part], expected[:, part], atol=1e-4, rtol=1e-4)


def test_without_cameras_the_album_is_seen_from_the_front(prior, with_album):
    def drawn(one):
        return one.predict(noise(1), torch.full((1,), 500), cfg(one.embed([""]), one.embed(["car"]), 2.0))

    assert not torch.allclose(drawn(with_album)[1], drawn(prior)[1], atol=1e-3)


def test_azimuths_count_from_the_picture(prior):
    def seen(azimuth: float):
        camera = orbit(azimuth, 10.0, 3.0, 42.0, SIZE, SIZE)
        gray = Reference(torch.full((3, SIZE, SIZE), 0.5), torch.ones(1, SIZE, SIZE), camera)
        shown = prior.condition_on(gray)
        return shown.predict(noise(), torch.full((4,), 500), condition(shown, first=azimuth + 20))

    torch.testing.assert_close(seen(10.0), seen(130.0), atol=1e-3, rtol=1e-3)


def test_encoding_carries_gradients_and_nothing_else_does(prior):
    rgb = torch.rand(4, 3, SIZE, SIZE, requires_grad=True)
    z = prior.encode(rgb)
    assert not prior.predict(z, torch.full((4,), 500), condition(prior)).requires_grad
    z.square().sum().backward()
    assert rgb.grad is not None and rgb.grad.abs().sum() > 0


def test_a_folder_without_its_words_is_one_clear_line(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "t")
    (tmp_path / "t" / "vocabulary.json").unlink()
    with pytest.raises(UserError, match=r"vocabulary\.json"):
        load_prior(tmp_path / "t")


def test_it_runs_as_a_run_tries_it(prior):
    probe(prior)


def test_long_prompts_are_cut_and_views_are_not_counted(prior):
    assert prior.fit("red car", (", front view",)) == "red car"
    assert len(prior.fit("red " * 60).split()) == MAX_WORDS - 1


def test_other_words_are_taken_for_known_ones(prior):
    assert prior.understand("a sedan")[0] == "car" and len(prior.understand("a sedan")[1]) == 1
    assert torch.equal(prior.embed(["A photo of a red sedan."]), prior.embed(["red car"]))
    assert prior.understand("sdfgh")[1]  # a line, where the run's own check is the one to refuse
    assert prior.vocabulary == frozenset((*THINGS, *COLORS))


def test_the_folder_tells_its_words_and_its_presets_before_it_is_loaded(folder):
    words = words_of(str(folder))
    assert words is not None and words.understand("a sedan")[0] == "car"
    assert family_of(str(folder)) == "views"
    assert words_of("sd21") is None and family_of("sd21") == "sd"


def test_single_views_need_no_cameras(prior):
    single = prior.alone()
    assert single.group == 1 and prior.group == 4
    probe(single)


def test_a_run_keeps_its_prompt_and_records_what_was_read(folder, tmp_path):
    settings = ["steps=1", "views.count=4", "report.size=16", "report.frames=2", "gaussians.count=50",
                "gaussians.final_opacity=0.01", "views.size=16"]  # fmt: skip
    config = resolve({"prompt": "a sedan", "prior": {"name": str(folder)}}, None, settings)
    lines = []

    def watch(job):
        lines.extend(job.warnings)
        return nullcontext(NullWatcher())

    make_run(config, tmp_path / "run", watch=watch)
    assert lines[0] == "'sedan' is not a word of this teacher: taking 'car'"
    record = json.loads((tmp_path / "run" / RECORD).read_text())
    assert record["prompts"]["prompt"] == {"given": "a sedan", "read_as": "car", "notes": [lines[0]]}
    assert load(tmp_path / "run" / CONFIG).prompt == "a sedan"
    with pytest.raises(UserError, match="names nothing"):
        make_run(replace(config, prompt="qwrtz"), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_picture_alone_is_enough(folder, tmp_path):
    shade = np.full((32, 32, 4), 200, np.uint8)
    shade[8:24, 8:24, :3] = (200, 40, 40)
    Image.fromarray(shade).save(tmp_path / "red.png")
    words = ["views.size=16", "gaussians.count=50", "report.size=16", "report.frames=2", "views.count=4"]
    flags = {"steps": 2, "prior": {"name": str(folder)}}
    config = resolve(flags | {"image": {"path": str(tmp_path / "red.png")}}, None, words)
    assert make_run(config, tmp_path / "run").finished
    with pytest.raises(UserError, match="reads a text"):
        make_run(resolve(flags, None, words), tmp_path / "nothing")
