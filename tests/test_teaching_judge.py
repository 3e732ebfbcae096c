"""The judge and the true models, in miniature: two models of boxes."""

import json

import pytest
import torch
import torch.nn.functional as F
from test_teaching_teach import bundle  # noqa: F401 - a fixture

from splatdistill.errors import UserError
from splatdistill.measure.truth import Truth
from splatdistill.priors.judge import FOLDER, SIDE, TRUTH, Classifier, Judge
from splatdistill.teaching import judge as teaching
from splatdistill.teaching.judge_views import PAIRS, VIEWS, Course, junk, softened, targets


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Return a file of random weights as EfficientNet-Lite0's are stored."""
    torch.manual_seed(0)
    network, saved = Classifier(2), {}

    def put(convolution, normalization, layer):
        count = len(layer.weight)
        saved[f"{convolution}.weight"] = layer.weight.detach().clone()
        for name, low in (("weight", 0.5), ("bias", -0.5), ("running_mean", -0.5), ("running_var", 0.5)):
            saved[f"{normalization}.{name}"] = low + torch.rand(count)

    put("_conv_stem", "_bn0", network.stem[-1])
    for i, block in enumerate(network.blocks):
        for norm, part in enumerate(("expand", "depthwise", "project")):
            if (layers := getattr(block, part)) is not None:
                put(f"_blocks.{i}._{part}_conv", f"_blocks.{i}._bn{norm}", layers[-1])
    put("_conv_head", "_bn1", network.head[-1])
    path = tmp_path_factory.mktemp("photographs") / "weights.pth"
    torch.save(saved, path)
    return path


def test_normalization_is_folded_into_the_convolutions(photographs):
    saved = torch.load(photographs, weights_only=True)
    network, x = teaching.read_photographs(photographs, 3), torch.randn(2, 3, 16, 16)
    plain = F.conv2d(F.pad(x, (0, 1, 0, 1)), saved["_conv_stem.weight"], stride=2)
    told = [saved[f"_bn0.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
    wanted = F.batch_norm(plain, *told, eps=teaching.STATISTICS)
    assert torch.allclose(network.stem(x), wanted, atol=1e-4)
    assert network.name.out_features == 3


def test_a_foreign_file_is_one_line(tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"no weights")
    with pytest.raises(UserError, match="expected the weights") as caught:
        teaching.read_photographs(tmp_path / "weights.pth", 2)
    assert "\n" not in str(caught.value)


def test_two_things_share_the_probability():
    wanted = targets(torch.tensor([[0, -1], [1, 2]]), 4, 0.0)
    assert torch.equal(wanted, torch.tensor([[1.0, 0, 0, 0], [0, 0.5, 0.5, 0]]))
    assert torch.allclose(targets(torch.tensor([[0, -1]]), 4, 0.1).sum(), torch.tensor(1.0))


def test_softened_and_broken_pictures_are_pictures():
    rng, pictures = torch.Generator().manual_seed(0), torch.rand(6, 3, SIDE, SIDE)
    for changed in (softened(pictures, rng), junk(pictures, rng)):
        assert changed.shape == pictures.shape and changed.min() >= 0 and changed.max() <= 1
    torn = junk(pictures, rng)[0]
    assert torch.allclose(torn.mean(), pictures[0].mean(), atol=1e-4) and not torch.equal(torn, pictures[0])


def test_temperature_makes_overconfident_guesses_honest():
    rng = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (400,), generator=rng)
    wrong = torch.randint(3, (400,), generator=rng)
    said = torch.where(torch.rand(400, generator=rng) < 0.5, wrong, labels)
    sure = 20 * F.one_hot(said, 3).float()
    assert teaching.calibrated(sure, labels) > 2
    told = teaching.figures(sure[:, None].log_softmax(2), labels, 1.0)
    assert told["view_top1"] == told["turntable_top1"] and 0.2 < told["calibration_error"] < 0.5


@pytest.mark.slow
def test_it_learns_goes_on_and_is_measured(bundle, photographs, tmp_path, monkeypatch, capsys):  # noqa: F811
    pytest.importorskip("moderngl")
    from splatdistill.teaching import assets, judge_views, truth

    for module in (judge_views, truth):
        monkeypatch.setattr(module, "all_entries", assets.load_entries)
    given = ["--out", str(tmp_path), "--bundle", str(bundle)]
    run = [*given, "--photographs", str(photographs), "--threads", "1"]
    if teaching.main([*run, "--seconds", "1e-9"]):  # one step
        pytest.skip(capsys.readouterr().err)
    saved = torch.load(tmp_path / FOLDER / "judge.pt", weights_only=True)
    assert saved["step"] == 1 and saved["number"] == 1
    assert teaching.main([*run, "--seconds", str(saved["spent"] + 1e-9)]) == 0
    saved = torch.load(tmp_path / FOLDER / "judge.pt", weights_only=True)
    assert saved["step"] == 2 and saved["number"] == 2  # another epoch's variations
    judge = Judge.load(tmp_path / FOLDER)
    assert judge.nouns == ["mat", "tower"]
    assert set(judge.told["measured"]) == {"held_out_views", "junk"}  # of one model, none is held out
    views = Course.of(tmp_path, bundle).epoch(0)
    assert views.pictures.shape == (2, VIEWS, 3, SIDE, SIDE) and 0 < PAIRS < 1
    assert truth.main(given) == 0
    found = Truth.load(tmp_path / FOLDER)
    assert found.nouns == ("mat", "tower") and (tmp_path / FOLDER / TRUTH).stat().st_size < 20_000
    flat, tall = (  # pixels of rows and of columns that are covered, of the first view
        [int(look.shapes[0].any(axis).sum()) for axis in (1, 0)] for look in found.looks
    )
    assert flat[0] < flat[1] and tall[0] > tall[1]
    assert json.loads((tmp_path / FOLDER / "judge.json").read_text())["steps"] == 2
