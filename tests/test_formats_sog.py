import io
import json
import zipfile

import numpy as np
import pytest
import torch
from format_errors import BOUNDS, errors, round_trip, scene
from PIL import Image
from test_formats_ply import by_gaussforge

from splatdistill.errors import UserError
from splatdistill.formats.sog import codebook, read_sog, write_sog


@pytest.mark.parametrize("degree", range(4))
def test_the_archive_has_playcanvas_layout(tmp_path, degree):
    write_sog(tmp_path / "a.sog", scene(150, degree), {"prompt": "x"})
    with zipfile.ZipFile(tmp_path / "a.sog") as archive:
        assert archive.testzip() is None
        meta = json.loads(archive.read("meta.json"))
        sizes = {
            n: Image.open(io.BytesIO(archive.read(n))).size for n in archive.namelist() if n != "meta.json"
        }
    assert meta["version"] == 2 and meta["count"] == 150 and meta["asset"]["extras"] == {"prompt": "x"}
    assert all(len(meta[name]["codebook"]) == 256 for name in ("scales", "sh0", *(["shN"] if degree else [])))
    coefficients = degree * (degree + 2)
    if degree:
        assert meta["shN"]["bands"] == degree and sizes.pop("shN_centroids.webp") == (64 * coefficients, 3)
    assert len(sizes) == 5 + bool(degree) and all(w * h >= 150 for w, h in sizes.values())


@pytest.mark.parametrize("degree", [0, 3])
@pytest.mark.parametrize("count", [1, 900])
def test_errors_stay_within_what_is_promised(tmp_path, degree, count):
    original = scene(count, degree)
    found = errors(original, round_trip(tmp_path / "a.sog", original))
    assert all(found[name] <= bound for name, bound in BOUNDS[".sog"].items()), found


@pytest.mark.parametrize("degree", range(4))
def test_gaussforge_reads_the_same_scene(tmp_path, degree):
    pytest.importorskip("gaussforge")
    write_sog(tmp_path / "a.sog", scene(200, degree))
    found = errors(read_sog(tmp_path / "a.sog")[0], by_gaussforge(tmp_path / "a.sog", "sog"))
    assert max(found["center"], found["scale"], found["color"], found["sh"]) < 1e-5
    assert found["opacity"] < 2e-3 and found["rotation_deg"] < 0.01


def test_invisible_gaussians_keep_their_color(tmp_path):
    """A picture format may drop the color of pixels whose alpha is 0."""
    gaussians = scene(20, 0)
    with torch.no_grad():
        gaussians["opacities"].fill_(-20.0)
    found = errors(gaussians, round_trip(tmp_path / "a.sog", gaussians))
    assert found["color"] < 4e-3


def test_equal_scenes_give_equal_bytes(tmp_path):
    for name in "ab":
        write_sog(tmp_path / f"{name}.sog", scene(20, 1))
    assert (tmp_path / "a.sog").read_bytes() == (tmp_path / "b.sog").read_bytes()


def test_a_codebook_keeps_few_values_and_outliers():
    for values in (np.full(10, 3.0), np.array([0.0, 1.0, 5.0]), np.append(np.linspace(0, 1, 9999), 100.0)):
        codes, centers = codebook(values)
        assert len(centers) == 256 and codes.dtype == np.uint8
        assert abs(centers[codes] - values).max() <= np.ptp(values) / 510 + 1e-12
    normal = np.random.default_rng(0).normal(size=(500, 3))
    codes, centers = codebook(normal)
    assert codes.shape == (500, 3) and np.sqrt(((centers[codes] - normal) ** 2).mean()) < np.ptp(normal) / 900


@pytest.mark.parametrize("degree", range(4))
def test_what_is_written_is_read(tmp_path, degree):
    original = scene(300, degree)
    write_sog(tmp_path / "a.sog", original, {"prompt": "ä 🍄"})
    back, comments = read_sog(tmp_path / "a.sog")
    assert comments == {"prompt": "ä 🍄"} and back["shN"].shape == (300, degree * (degree + 2), 3)


def repacked(path, change):
    """Return a copy of a .sog whose meta.json and pictures were changed in place by a function."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    meta = json.loads(members["meta.json"])
    change(meta, members)
    if "meta.json" in members:
        members["meta.json"] = json.dumps(meta).encode()
    target = path.with_name("changed.sog")
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return target


def picture(width, height):
    packed = io.BytesIO()
    Image.new("RGBA", (width, height)).save(packed, "WEBP", lossless=True)
    return packed.getvalue()


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda meta, members: members.pop("meta.json"), "holds no 'meta.json'"),
        (lambda meta, members: meta.clear(), "no .sog of version 2"),
        (lambda meta, members: meta.update(version=1), "no .sog of version 2"),
        (lambda meta, members: meta.update(count=10**9), "GiB"),
        (lambda meta, members: meta.update(count=10**6), "do not fit"),
        (lambda meta, members: meta.update(count=-1), "whole number"),
        (lambda meta, members: meta.update(count="9"), "whole number"),
        (lambda meta, members: meta["means"].update(mins=[0, 0]), "no sound mins"),
        (lambda meta, members: meta["means"].update(mins=[0, 0, 1e99]), "no sound mins"),
        (lambda meta, members: meta["scales"].update(codebook=[]), "no sound codebook"),
        (lambda meta, members: meta["scales"].update(codebook=[None] * 256), "no sound codebook"),
        (lambda meta, members: meta["quats"].update(files=["nosuch"]), "holds no 'nosuch'"),
        (lambda meta, members: meta["quats"].update(files=[]), "names no picture"),
        (lambda meta, members: meta.pop("sh0"), "no sh0"),
        (lambda meta, members: meta["shN"].update(bands=4), "bands 4"),
        (lambda meta, members: meta["shN"].update(count=10**6), "count 1000000"),
        (lambda meta, members: meta["shN"].update(count=1), "do not fit|refers to SH rows"),
        (lambda meta, members: members.update({"quats.webp": b"no picture"}), "damaged picture"),
        (lambda meta, members: members.update({"quats.webp": picture(4, 4)}), "do not fit"),
        (lambda meta, members: members.update({"quats.webp": picture(4000, 4000)}), "do not fit"),
        (lambda meta, members: members.update({"quats.webp": picture(10, 10)}), "unknown kind"),
        (lambda meta, members: members.update({"quats.webp": bytes(1 << 22)}), "expected at most"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, change, says):
    write_sog(tmp_path / "a.sog", scene(100, 1))
    with pytest.raises(UserError, match=says) as error:
        read_sog(repacked(tmp_path / "a.sog", change))
    assert "\n" not in str(error.value)


def test_every_truncation_is_a_user_error(tmp_path):
    write_sog(tmp_path / "a.sog", scene(2, 0))
    content = (tmp_path / "a.sog").read_bytes()
    for length in range(0, len(content), 7):
        (tmp_path / "b.sog").write_bytes(content[:length])
        with pytest.raises(UserError):
            read_sog(tmp_path / "b.sog")
