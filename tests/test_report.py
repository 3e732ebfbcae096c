import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from splatdistill import report
from splatdistill.config.load import dump
from splatdistill.config.schema import Config, ReportConfig
from splatdistill.errors import UserError
from splatdistill.folder import MetricsWriter
from splatdistill.formats.ply import write_ply
from splatdistill.media.run_report import write_report
from splatdistill.media.sheets import LABEL, contact_sheet, render_views
from splatdistill.scene import gaussians as G
from splatdistill.scene.cameras import turntable


def scene():
    """Red in front (+X), green on the +Y side, blue on top: tells the views and their orientation apart."""
    blob = G.init_blob(3, scale=0.12, opacity=0.99, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        blob["means"].copy_(torch.tensor([[0.5, 0, 0], [0, 0.5, 0], [0, 0, 0.5]]))
        blob["sh0"].copy_(G.rgb_to_sh0(torch.eye(3))[:, None])
    return blob


def center_of(image, channel):
    """Row and column of the center of a color on white, in fractions of the image."""
    others = [c for c in range(3) if c != channel]
    weight = 1 - np.asarray(image, np.float64)[..., others].max(-1) / 255
    rows, columns = np.indices(weight.shape)
    return (rows * weight).sum() / weight.sum() / len(weight), (columns * weight).sum() / weight.sum() / len(
        weight
    )


def test_contact_sheet_is_two_rows_of_four_on_a_plain_background(tmp_path):
    contact_sheet(scene(), tmp_path / "p.png", size=48, background=(0.2, 0.4, 0.6))
    sheet = Image.open(tmp_path / "p.png")
    assert sheet.size == (4 * 48, 2 * 48) and sheet.mode == "RGB"
    assert all(sheet.getpixel((48 * i, 48 * j)) == (51, 102, 153) for i in range(4) for j in range(2))


def test_views_turn_counter_clockwise_from_the_front_with_z_up(tmp_path):
    contact_sheet(scene(), tmp_path / "p.png", size=64)
    sheet = np.asarray(Image.open(tmp_path / "p.png"))
    front, side = sheet[:64, :64], sheet[:64, 128:192]  # azimuth 0 and 90
    assert center_of(front, 2)[0] < 0.4  # blue: up
    assert center_of(front, 1)[1] > 0.6  # green: right in the front view
    assert abs(center_of(front, 0)[1] - 0.5) < 0.05  # red: facing us
    assert abs(center_of(side, 1)[1] - 0.5) < 0.05 and center_of(side, 0)[1] < 0.4


def test_render_views_gives_bytes_without_a_graph():
    images = render_views(scene(), turntable(3, 15.0, 3.0, 40.0, 32).resized(40, 24))
    assert images.shape == (3, 24, 40, 3) and images.dtype == torch.uint8
    assert (images[:, 0, 0] == 255).all() and images.min() < 100


def finished(folder, prompt="a red ball", **options):
    """Return the folder of a run with two kept scenes, and its configuration."""
    config = Config(prompt=prompt, steps=4, report=ReportConfig(size=16, frames=3), **options)
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(dump(config))
    write_ply(folder / "splat.ply", scene())
    for step in (0, 4):
        write_ply(folder / "checkpoints" / f"step-{step:08d}.ply", scene())
    with MetricsWriter(folder / "metrics.jsonl") as metrics:
        for step in range(1, 5):
            metrics.write(step, loss=1.0 / step, gradient_norm=math.nan, t=900.0, gaussians=3)
    return config


@pytest.fixture
def no_ffmpeg(monkeypatch):
    monkeypatch.setattr("splatdistill.media.films.find_ffmpeg", lambda: None)


def test_a_report_is_pictures_and_a_page(tmp_path, no_ffmpeg, capfd):
    config = finished(tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    write_report(scene(), tmp_path, config)
    made = {path.name for path in tmp_path.iterdir()} - before
    assert made == {"preview.png", "turntable.webp", "filmstrip.png", "report.html"}
    assert capfd.readouterr().err == ""  # a film is a bonus, not worth a word
    assert Image.open(tmp_path / "filmstrip.png").size == (3 * 8, 8 + LABEL)
    assert getattr(Image.open(tmp_path / "turntable.webp"), "n_frames", 1) == 3
    with pytest.raises(UserError, match="cannot write"):
        write_report(scene(), tmp_path / "missing", config)


def test_an_old_run_gets_its_report_by_a_command(tmp_path, no_ffmpeg, capfd):
    finished(tmp_path / "run")
    assert report.main([str(tmp_path / "run")]) == 0
    page = (tmp_path / "run" / "report.html").read_bytes()
    assert report.main([str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "report.html").read_bytes() == page
    capfd.readouterr()
    assert report.main([str(tmp_path)]) == 2
    assert "no finished run" in capfd.readouterr().err
    (tmp_path / "run" / "metrics.jsonl").unlink()
    assert report.main([str(tmp_path / "run")]) == 0


def test_a_report_that_cannot_fit_is_refused_before_a_picture_is_made(tmp_path, capfd):
    finished(tmp_path / "run")
    known = tmp_path / "run" / "config.yaml"
    known.write_text(dump(Config(report=ReportConfig(size=1_000_000))))
    before = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert report.main([str(tmp_path / "run")]) == 2
    assert "report.size" in capfd.readouterr().err
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == before


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_metrics_are_one_json_object_a_line_readable_at_once(tmp_path):
    with MetricsWriter(tmp_path / "m.jsonl") as metrics:
        metrics.write(0, loss=1.5, note="a\nb")
        assert lines(tmp_path / "m.jsonl") == [{"step": 0, "loss": 1.5, "note": "a\nb"}]
        metrics.write(1, loss=float("nan"), gaussians=3)
    assert lines(tmp_path / "m.jsonl")[1] == {"step": 1, "loss": None, "gaussians": 3}


def test_resuming_drops_later_steps_and_a_torn_line(tmp_path):
    path = tmp_path / "m.jsonl"
    with MetricsWriter(path) as metrics:
        for step in range(6):
            metrics.write(step, loss=0.5)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"step": 6, "lo')
    with MetricsWriter(path, resume_step=4) as metrics:
        metrics.write(4, loss=0.5)
        metrics.write(5, loss=0.5)
    assert path.read_bytes() == whole
    path.write_bytes(whole[:-1])  # the last line is whole but for its end
    MetricsWriter(path, resume_step=9).close()
    assert [record["step"] for record in lines(path)] == list(range(5))


def test_a_fresh_run_starts_the_metrics_anew_and_a_lost_file_is_no_obstacle(tmp_path):
    path = tmp_path / "m.jsonl"
    MetricsWriter(path, resume_step=5).close()
    assert path.read_bytes() == b""
    path.write_bytes(b'{"step": 0}\n')
    MetricsWriter(path).close()
    assert path.read_bytes() == b""
    with pytest.raises(UserError, match="cannot write"):
        MetricsWriter(tmp_path / "missing" / "m.jsonl")
