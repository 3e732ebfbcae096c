import json

import numpy as np
import pytest

from splatdistill.errors import UserError
from splatdistill.priors import album
from splatdistill.teaching import card

FURNITURE = "debian:furniture 1.8"
ROWS = [
    {"noun": "car", "author": "Ann", "licence": "CC0-1.0", "source": "ann/cars@12ab:models/red.glb"},
    {"noun": "bus", "author": "Ann", "licence": "CC0-1.0", "source": "ann/cars@12ab:models/bus.glb"},
    {"noun": "sofa", "author": "Bo & Co", "licence": "CC-BY-3.0", "source": FURNITURE, "title": "Couch"},
    {"noun": "sofa", "author": "Cem", "licence": "CC-BY-3.0-US", "source": FURNITURE, "title": "Sofa"},
]  # fmt: skip


def test_every_author_is_named_and_works_that_want_it_by_their_titles():
    text = card.credits(ROWS)
    assert "- Ann: 2 models, ann/cars@12ab\n" in text
    assert (
        "- Bo & Co: 1 model, furniture 1.8: Couch\n" in text
        and "- Cem: 1 model, furniture 1.8: Sofa\n" in text
    )
    assert text.index("CC0") < text.index("Ann") < text.index("Attribution 3.0 (") < text.index("Bo & Co")
    assert "4 models of 3 nouns" in text and max(map(len, text.splitlines())) <= card.WIDTH + 6


def test_an_unknown_license_is_refused():
    with pytest.raises(UserError, match="CC-BY-NC"):
        card.credits([ROWS[0] | {"licence": "CC-BY-NC"}])


def test_the_card_holds_what_was_measured_and_nothing_else(tmp_path, capsys):
    (tmp_path / "assets.json").write_text(json.dumps(ROWS))
    run = ["--out", str(tmp_path), "--bundle", str(tmp_path)]
    assert card.main(run) == 2
    assert "run the stage export first" in capsys.readouterr().err
    folder = tmp_path / "teacher"
    network = {
        "layers": 5,
        "width": 320,
        "outer_layers": 2,
        "outer_width": 192,
        "in_channels": 24,
        "sample_size": 16,
    }
    settings = {"batch": 64, "matrix_rate": 0.002, "learning_rate": 0.001, "ema": 0.998}
    for path, told in (
        ("teacher/model_index.json", {"step": 1500}),
        ("teacher/vocabulary.json", {"things": {"car": []}, "names": {"car": "car", "auto": "car"}}),
        ("teacher/transformer/config.json", network),
        ("teacher/judge/judge.json", {"nouns": [], "measured": {"held_out_models": dict.fromkeys(
            ("view_top1", "view_top5", "turntable_top1", "turntable_top5", "calibration_error"), 0.5)}}),
        ("run/pupil.json", {"settings": settings}),
    ):  # fmt: skip
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(json.dumps(told))
    strips, halves = [b"", b""], np.ones((2, 3))
    with open(folder / album.FILE, "wb") as file:
        album.Album(strips, halves, ("a", "b"), ("car", "car"), ("", "")).save(file)
    lines = "".join(json.dumps({"step": 10 * i + 10, "loss": 1.0 / (i + 1)}) + "\n" for i in range(40))
    (tmp_path / "run" / "losses.jsonl").write_text(lines)
    assert card.main(run) == 0
    text = (folder / "README.md").read_text()
    assert "1,500 steps of 64 views (96,000 in all)" in text and "## Measured" not in text
    assert f"{album.PICTURES} of each of 2 models of 1 nouns" in " ".join(text.split())
    assert (
        "| models never seen | 50.0 % |" in text
        and "| step | 100 |" in text
        and "Cem" in (folder / "NOTICE").read_text()
    )
    (tmp_path / "measured.json").write_text(json.dumps({"named among the first": "81.2 %"}))
    assert card.main(run) == 0
    assert "| named among the first | 81.2 % |" in (folder / "README.md").read_text()
