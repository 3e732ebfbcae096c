import math

import numpy as np
import pytest
import torch
from format_errors import scene
from hypothesis import given
from hypothesis import strategies as st

from splatdistill.errors import UserError
from splatdistill.formats.packing import (
    allocate,
    from_smallest_three,
    logit,
    opened,
    pieces,
    quantize,
    smallest_three,
    to_splats,
)
from splatdistill.formats.storable import LARGEST
from splatdistill.scene.gaussians import NAMES, from_arrays, sh_degree_of


def test_smallest_three_components_give_the_rotation_back():
    quats = np.random.default_rng(0).normal(size=(1000, 4))
    quats = np.concatenate([quats / np.linalg.norm(quats, axis=1, keepdims=True), np.eye(4), -np.eye(4)])
    largest, others = smallest_three(quats)
    assert np.abs(others).max() <= math.sqrt(0.5) + 1e-12
    back = from_smallest_three(largest, others)
    assert np.abs((back * quats).sum(1)) == pytest.approx(np.ones(len(quats)), abs=1e-12)


@given(st.integers(0, 255))
def test_stored_opacities_are_finite_and_keep_their_byte(byte):
    opacity = logit(np.array([byte / 255]))
    assert np.isfinite(opacity).all()
    assert quantize(1 / (1 + np.exp(-opacity)), 255) == byte


@given(st.floats(-2, 3), st.sampled_from([1, 255, 1023, 65535]))
def test_quantized_values_are_nearest_and_clipped(value, levels):
    step = int(quantize(np.array(value), levels))
    assert 0 <= step <= levels
    assert abs(step / levels - min(max(value, 0), 1)) <= 0.5 / levels + 1e-12


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", NAMES)
def test_gaussians_that_are_not_finite_are_left_out_one_by_one(name, value):
    if (name, value) in (("opacities", math.inf), ("scales", -math.inf)):
        pytest.skip("alpha 1, and a thickness of 0: tests/test_formats_storable.py")
    gaussians = scene(9, 1)
    with torch.no_grad():
        gaussians[name].view(9, -1)[4, -1] = value
    splats, dropped = to_splats(gaussians)
    assert dropped == 1
    assert np.array_equal(splats.means, gaussians["means"].detach()[[0, 1, 2, 3, 5, 6, 7, 8]])
    assert all(np.isfinite(values).all() for values in splats)


def test_extreme_but_finite_values_become_finite_ones():
    gaussians = scene(6, 0)
    with torch.no_grad():
        gaussians["quats"][0] = 0
        gaussians["quats"][1] = 1e30
        gaussians["quats"][2] = 1e-30
        gaussians["scales"][3] = -1e30
        gaussians["opacities"][4] = 1e30
        gaussians["scales"][5, 0] = 200  # e^200 is not a float32
    splats, dropped = to_splats(gaussians)
    assert dropped == 0 and len(splats.means) == 6 and splats.log_scales.max() == LARGEST
    assert splats.quats[0].tolist() == [1, 0, 0, 0]
    assert np.linalg.norm(splats.quats, axis=1) == pytest.approx(np.ones(6), abs=1e-6)
    assert np.exp(splats.log_scales).min() > 0 and splats.opacities[4] == 1


def test_a_scene_without_anything_to_store_is_a_user_error():
    gaussians = scene(3, 0)
    with torch.no_grad():
        gaussians["means"].fill_(math.nan)
    for empty in (gaussians, scene(0, 0)):
        with pytest.raises(UserError, match="can be stored"):
            to_splats(empty)


@pytest.mark.parametrize("degree", range(4))
def test_allocated_arrays_become_a_scene_without_a_copy(degree):
    arrays = allocate(3, degree)
    gaussians = from_arrays(**arrays)
    assert sh_degree_of(gaussians) == degree
    arrays["means"][:] = 7
    assert (gaussians["means"] == 7).all() and gaussians["means"].requires_grad


@given(st.integers(0, 50), st.integers(1, 9))
def test_pieces_cover_every_row_once(count, rows):
    assert [i for piece in pieces(count, rows) for i in range(count)[piece]] == list(range(count))


def test_what_cannot_be_opened_is_a_user_error(tmp_path):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError, match="cannot read"), opened(path):
            pass
