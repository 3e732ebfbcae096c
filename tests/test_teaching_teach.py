"""Every stage of the teaching in miniature, from models to a teacher that draws."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_teaching_assets import glb

from splatdistill.priors import album, load_prior
from splatdistill.priors.views import ViewPrior
from splatdistill.teaching import shards, teach
from splatdistill.teaching.meshes import unit_solid
from splatdistill.teaching.solids import KINDS

SMALL = ["--batch", "10", "--width", "64", "--outer-width", "64", "--layers", "1"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    """Two models of boxes, one flat and one tall."""
    path = tmp_path_factory.mktemp("bundle")
    rows = []
    for noun, size in (("mat", (1.0, 0.1, 1.0)), ("tower", (0.3, 1.0, 0.3))):
        (path / f"{noun}.glb").write_bytes(glb(unit_solid(KINDS["box"], 0.0) * size))
        rows.append(
            {
                "id": noun,
                "file": f"{noun}.glb",
                "noun": noun,
                "also": ["thing"],
                "phrases": [f"a brown {noun}"],
            }
            | {"front_azimuth_deg": 90, "symmetric": False, "tintable": True, "rank": 0}
        )
    (path / "assets.json").write_text(json.dumps(rows))
    return path


def run(stage: str, out: Path, *more: str) -> None:
    assert teach.main([stage, "--out", str(out), "--threads", "1", *more]) == 0


@pytest.mark.slow
def test_all_stages_end_in_a_teacher_that_draws(bundle, tmp_path, monkeypatch, capsys):
    pytest.importorskip("moderngl")
    monkeypatch.setattr(shards, "SCENES", 6)
    given = ["--bundle", str(bundle)]
    if teach.main(["render", "--out", str(tmp_path), *given, "--shards", "1"]):
        pytest.skip(capsys.readouterr().err)
    other = tmp_path / "gpu"
    run("pages", tmp_path, *given)
    run("pack", tmp_path, "--shards", "1", *given)
    other.mkdir()
    for name in ("words.json", "pictures-00000.pack", album.FILE):
        (tmp_path / name).rename(other / name)
    run("unpack", other, "--workers", "2")
    with np.load(other / "pictures" / "pictures-00000.npz") as arrays:
        assert arrays["pictures"].shape == (6, shards.VIEWS, 128, 128, 3)
    run("encode", other)
    run("decode", other, "--decoder-steps", "2")
    run("train", other, "--until", "2", *SMALL)
    run("train", other, "--until", "3", "--fall", "1")  # goes on, and remembers what it is
    told = json.loads((other / "run" / "pupil.json").read_text())
    assert told["settings"]["width"] == 64 and len(told["channels"]["means"]) == 24
    run("export", other, *given)
    config = json.loads((other / "teacher" / "vae" / "config.json").read_text())
    assert not config["_name_or_path"]  # no folder of the machine that made it
    run("adopt", again := tmp_path / "again", "--teacher", str(other / "teacher"))
    shutil.copytree(other / "latents", again / "latents")
    for path in other.glob("pages.*"):
        shutil.copy(path, again)
    run("train", again, "--until", "4")
    assert (again / "words.json").read_text() == (other / "words.json").read_text()
    run("sheet", other, "--steps", "2", "--texts", "brown tower", "mat")
    assert (other / "sheet.png").is_file()
    prior = load_prior(other / "teacher")
    assert isinstance(prior, ViewPrior)
    assert prior.latent_shape == (24, 16, 16) and prior.image_size == 128
    text, notes = prior.reader.understand("a photo of a Brown tower on top of a mat")
    assert text == "brown tower on top of mat" and not notes
    shown = prior.embed(["tower", "mat", "tower on top of mat", "tower", ""])[:, 0, 0].tolist()
    kept = album.Album.load(other / "teacher" / album.FILE)
    tower, mat = (kept.ids.index(name) for name in ("tower", "mat"))
    pair = (
        len(kept.ids) + (tower * len(kept.ids) + mat) * len(album.BETWEEN) + album.BETWEEN.index("on top of")
    )
    assert shown == [tower, mat, pair, tower, -1]


def test_stages_out_of_turn_are_one_clear_line(tmp_path, capsys):
    for stage, said in (
        ("encode", "render first"),
        ("train", "no latents"),
        ("export", "nothing was trained"),
    ):
        (tmp_path / "words.json").write_text("[]")
        assert teach.main([stage, "--out", str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
