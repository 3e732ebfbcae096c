import numpy as np
import pytest
import torch

from splatdistill.errors import UserError
from splatdistill.scene.gaussians import init_blob, moved
from splatdistill.scene.masks import around, is_file, is_words, read_mask

BLOB = init_blob(300, generator=torch.Generator().manual_seed(0))
BOX = "box:-0.2,-0.6,0,0.6,0.6,0.6"


@pytest.mark.parametrize("text", [BOX, "sphere:0.1,0,0.2,0.3"])
def test_a_shape_holds_what_is_in_it(text):
    mask = read_mask(text, BLOB)
    x, y, z = BLOB["means"].detach().T
    inside = (x >= -0.2) & (y.abs() <= 0.6) & (z >= 0.0) & (x <= 0.6) & (z <= 0.6)
    if text.startswith("sphere"):
        inside = (x - 0.1) ** 2 + y**2 + (z - 0.2) ** 2 <= 0.09
    assert torch.equal(mask.rows, inside) and 0 < inside.sum() < 300


@pytest.mark.parametrize("text", [BOX, "sphere:0.1,0,0.2,0.3"])
def test_seeds_are_born_inside_and_what_leaves_comes_back(text):
    mask = read_mask(text, BLOB).moved((1.0, -2.0, 0.5), 3.0)
    seeds = mask.seeds(500, 3, torch.Generator().manual_seed(1))
    assert mask.holds(seeds["means"]).all() and seeds["shN"].shape == (500, 3, 3)
    middle = seeds["means"].detach().mean(0)
    torch.testing.assert_close(middle, mask.middle, atol=0.2, rtol=0.0)
    means, free = seeds["means"].detach() * 2.0, torch.arange(500) % 2 == 0
    before = means.clone()
    mask.keep_inside_(means, free)
    assert mask.holds(mask.middle + (means[free] - mask.middle) * (1 - 1e-5)).all()
    assert torch.equal(means[~free], before[~free]) and not torch.equal(means[free], before[free])


def test_a_moved_mask_is_that_of_the_moved_scene():
    shift, scale = (0.3, -0.1, 2.0), 0.25
    mask = read_mask(BOX, BLOB).moved(shift, scale)
    assert torch.equal(mask.holds(moved(BLOB, shift, scale)["means"].detach()), mask.rows)


def test_a_file_of_indices_or_booleans_chooses_the_same(tmp_path):
    rows = read_mask(BOX, BLOB).rows
    np.save(tmp_path / "indices.npy", rows.nonzero()[:, 0].numpy())
    np.save(tmp_path / "booleans.npy", rows.numpy())
    masks = [read_mask(str(tmp_path / name), BLOB) for name in ("indices.npy", "booleans.npy")]
    assert all(torch.equal(mask.rows, rows) for mask in masks)
    assert masks[0].holds(BLOB["means"].detach()[rows]).all()
    assert torch.equal(masks[0].half, masks[1].half)


def test_words_are_told_from_shapes_and_files():
    assert is_words("the hat") and not is_words(BOX) and not is_words("a.npy")
    assert is_file("a.npy") and not is_file(BOX) and not is_file("the hat")


def test_mistakes_are_one_line(tmp_path):
    np.save(tmp_path / "far.npy", np.array([300]))
    np.save(tmp_path / "short.npy", np.zeros(3, bool))
    np.save(tmp_path / "real.npy", np.zeros(3))
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "empty.npy", np.zeros(0, int))
    (tmp_path / "broken.npy").write_bytes(b"nothing")
    cases = {"box:1,2,3": "x0,y0,z0", "box:1,1,1,0,2,2": "x0 < x1", "sphere:0,0,0,-1": "radius"}
    cases |= {"sphere:0,0,nan,1": "4 numbers", "box:a,b,c,d,e,f": "6 numbers"}
    names = {"far": "indices from 0 to 299", "short": "3 booleans", "real": "list of indices"}
    names |= {
        "object": "cannot be read",
        "empty": "no Gaussian",
        "broken": "cannot be read",
        "none": "No such",
    }
    cases |= {str(tmp_path / f"{name}.npy"): said for name, said in names.items()}
    for text, said in cases.items():
        with pytest.raises(UserError, match=said) as caught:
            read_mask(text, BLOB)
        assert "\n" not in str(caught.value)


def test_an_empty_shape_is_a_mask_but_nothing_chosen_is_none():
    assert not read_mask("sphere:9,9,9,0.1", BLOB).rows.any()  # where something new may be born
    with pytest.raises(UserError, match="no Gaussian"):
        around(BLOB, torch.zeros(300, dtype=torch.bool), "the hat")


def test_above_is_the_space_on_top():
    mask = read_mask(" Above ", BLOB)
    _, _, z = BLOB["means"].detach().T
    assert not is_words("above") and not is_file("above") and not mask.round
    foot = float(mask.middle[2] - mask.half[2])
    assert 0.8 * float(z.max()) < foot < float(z.max())
    assert torch.equal(mask.rows, mask.holds(BLOB["means"].detach())) and int(mask.rows.sum()) < 30
    assert float(2 * mask.half[2]) == pytest.approx(float(z.max() - z.min()), rel=0.15)
