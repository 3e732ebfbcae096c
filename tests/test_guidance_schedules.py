"""Schedules: ends, clamping, monotony, and the range of sampled timesteps."""

import pytest
import torch

from splatdistill.guidance.schedules import Linear, SqrtAnneal, Timesteps, annealed


@pytest.mark.parametrize("kind", [Linear, SqrtAnneal])
def test_ramps_hold_their_ends_outside_the_run(kind):
    ramp = kind(2.0, -1.0)
    assert [ramp(p) for p in (-0.5, 0.0)] == [2.0, 2.0]
    assert [ramp(p) for p in (1.0, 1.5)] == [-1.0, -1.0]


def test_linear_is_a_straight_line():
    assert Linear(0.98, 0.2)(0.5) == pytest.approx(0.59)


def test_sqrt_anneal_is_ahead_of_linear():
    assert SqrtAnneal(0.98, 0.32)(0.25) == pytest.approx(0.65)


def test_annealed_timesteps_are_shared_by_the_views_and_draw_nothing():
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    schedule = annealed(0.98, 0.2)
    assert schedule.sample(0.0, 3, 1000, generator).tolist() == [980] * 3
    assert schedule.sample(1.0, 3, 1000, generator).tolist() == [200] * 3
    assert torch.equal(generator.get_state(), before)


def test_random_timesteps_stay_in_the_annealed_range_and_in_the_table():
    schedule = Timesteps(high=(0.98, 0.5))
    generator = torch.Generator().manual_seed(0)
    early = schedule.sample(0.0, 500, 1000, generator)
    late = schedule.sample(1.0, 500, 1000, generator)
    assert early.min() >= 20 and 500 < early.max() <= 980
    assert late.min() >= 20 and late.max() <= 500
    assert annealed(1.0, 1.0).sample(0.0, 1, 1000, generator).item() == 999


def test_views_of_a_group_share_their_timestep():
    schedule = Timesteps(high=(0.98, 0.5))
    t = schedule.sample(0.3, 8, 1000, torch.Generator().manual_seed(0), group=4).view(2, 4)
    assert (t == t[:, :1]).all() and t[0, 0] != t[1, 0]
