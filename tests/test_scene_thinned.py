"""Splats that lack most of their Gaussians."""

import math

import pytest
import torch

from splatdistill.scene.gaussians import init_blob, select
from splatdistill.scene.thinned import SPARSE, USUAL, filled, sparseness

BLOB = init_blob(4000, 0.5, opacity=0.9, generator=torch.Generator().manual_seed(0))


def test_a_whole_splat_is_left_as_it_is():
    assert 0.0 < sparseness(BLOB) < SPARSE
    assert filled(BLOB) is BLOB
    few = select(BLOB, slice(5))
    assert filled(few) is few


def test_a_thinned_splat_is_widened_until_its_gaussians_meet():
    thinned = select(BLOB, torch.arange(4000) % 20 == 0)
    found = sparseness(thinned)
    assert found > SPARSE
    mended = filled(thinned)
    assert sparseness(mended) == pytest.approx(USUAL, rel=1e-4)
    wider = (mended["scales"] - thinned["scales"]).detach()
    torch.testing.assert_close(wider, torch.full_like(wider, math.log(found / USUAL)))
    torch.testing.assert_close(mended["means"], thinned["means"])
