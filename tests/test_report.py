import json

import numpy as np
import pytest
import torch
from PIL import Image

from splatdistill import gaussians as G
from splatdistill import report
from splatdistill.cameras import turntable
from splatdistill.errors import UserError


def scene():
    """Red in front (+X), green on the +Y side, blue on top: tells the views and their orientation apart."""
    blob = G.init_blob(3, scale=0.12, opacity=0.99, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        blob["means"].copy_(torch.tensor([[0.5, 0, 0], [0, 0.5, 0], [0, 0, 0.5]]))
        blob["sh0"].copy_(G.rgb_to_sh0(torch.eye(3))[:, None])
    return blob


def centre_of(image, channel):
    """Row and column of the centre of a colour on white, in fractions of the image."""
    others = [c for c in range(3) if c != channel]
    weight = 1 - np.asarray(image, np.float64)[..., others].max(-1) / 255
    rows, columns = np.indices(weight.shape)
    return (rows * weight).sum() / weight.sum() / len(weight), (columns * weight).sum() / weight.sum() / len(
        weight
    )


def test_contact_sheet_is_two_rows_of_four_on_a_plain_background(tmp_path):
    report.contact_sheet(scene(), tmp_path / "p.png", size=48, background=(0.2, 0.4, 0.6))
    sheet = Image.open(tmp_path / "p.png")
    assert sheet.size == (4 * 48, 2 * 48) and sheet.mode == "RGB"
    assert all(sheet.getpixel((48 * i, 48 * j)) == (51, 102, 153) for i in range(4) for j in range(2))


def test_views_turn_counter_clockwise_from_the_front_with_z_up(tmp_path):
    report.contact_sheet(scene(), tmp_path / "p.png", size=64)
    sheet = np.asarray(Image.open(tmp_path / "p.png"))
    front, side = sheet[:64, :64], sheet[:64, 128:192]  # azimuth 0 and 90
    assert centre_of(front, 2)[0] < 0.4  # blue: up
    assert centre_of(front, 1)[1] > 0.6  # green: right in the front view
    assert abs(centre_of(front, 0)[1] - 0.5) < 0.05  # red: facing us
    assert abs(centre_of(side, 1)[1] - 0.5) < 0.05 and centre_of(side, 0)[1] < 0.4


def test_render_views_gives_bytes_without_a_graph():
    images = report.render_views(scene(), turntable(3, 15.0, 3.0, 40.0, 32).resized(40, 24))
    assert images.shape == (3, 24, 40, 3) and images.dtype == torch.uint8
    assert (images[:, 0, 0] == 255).all() and images.min() < 100


def test_turntable_is_an_endless_animation_of_all_frames(tmp_path):
    report.turntable_webp(scene(), tmp_path / "t.webp", frames=6, size=32)
    animation = Image.open(tmp_path / "t.webp")
    assert (
        animation.format == "WEBP" and getattr(animation, "n_frames", 1) == 6 and animation.size == (32, 32)
    )
    assert animation.info["loop"] == 0
    first = np.asarray(animation.convert("RGB"), np.int64)
    animation.seek(3)
    assert np.abs(first - np.asarray(animation.convert("RGB"))).max() > 50


def test_report_writes_both_pictures_and_nothing_else(tmp_path):
    report.write_report(scene(), tmp_path, size=16, frames=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["preview.png", "turntable.webp"]
    with pytest.raises(UserError, match="cannot write"):
        report.write_report(scene(), tmp_path / "missing", size=16, frames=2)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_metrics_are_one_json_object_a_line_readable_at_once(tmp_path):
    with report.MetricsWriter(tmp_path / "m.jsonl") as metrics:
        metrics.write(0, loss=1.5, note="a\nb")
        assert lines(tmp_path / "m.jsonl") == [{"step": 0, "loss": 1.5, "note": "a\nb"}]
        metrics.write(1, loss=float("nan"), gaussians=3)
    assert lines(tmp_path / "m.jsonl")[1] == {"step": 1, "loss": None, "gaussians": 3}


def test_resuming_drops_later_steps_and_a_torn_line(tmp_path):
    path = tmp_path / "m.jsonl"
    with report.MetricsWriter(path) as metrics:
        for step in range(6):
            metrics.write(step, loss=0.5)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"step": 6, "lo')
    with report.MetricsWriter(path, resume_step=4) as metrics:
        metrics.write(4, loss=0.5)
        metrics.write(5, loss=0.5)
    assert path.read_bytes() == whole
    path.write_bytes(whole[:-1])  # the last line is whole but for its end
    report.MetricsWriter(path, resume_step=9).close()
    assert [record["step"] for record in lines(path)] == list(range(5))


def test_a_fresh_run_starts_the_metrics_anew_and_a_lost_file_is_no_obstacle(tmp_path):
    path = tmp_path / "m.jsonl"
    report.MetricsWriter(path, resume_step=5).close()
    assert path.read_bytes() == b""
    path.write_bytes(b'{"step": 0}\n')
    report.MetricsWriter(path).close()
    assert path.read_bytes() == b""
    with pytest.raises(UserError, match="cannot write"):
        report.MetricsWriter(tmp_path / "missing" / "m.jsonl")
