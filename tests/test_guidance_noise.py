"""Noise sources: SDI's inversion against the published formulas in plain float64, and its properties."""

# a ToyPrior's mean is a mapping here
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

import itertools
import math

import pytest
import torch

from splatdistill.guidance.core import FixedNoise
from splatdistill.guidance.methods import SDS
from splatdistill.guidance.noise import (
    Inversion,
    ddim_inversion,
    inversion_grid,
    landing_timesteps,
)
from splatdistill.guidance.query import Query, State
from splatdistill.priors.base import Conditioning, ToyPrior, cfg

SHAPE = (4, 3, 3)
TEXTS = ["", "text", "front", "side"]
VARIANCE = 0.4
PREDICTIONS = ["epsilon", "v_prediction", "sample", "flow"]


class RecordingPrior(ToyPrior):
    """A ToyPrior that remembers the timesteps and the active branches of each call."""

    def predict(self, z_t, t, cond):
        self.__dict__.setdefault("calls", []).append((t.tolist(), (cond.weights != 0).any(dim=1).tolist()))
        return super().predict(z_t, t, cond)


def toy(prediction_type="epsilon", kind=ToyPrior):
    generator = torch.Generator().manual_seed(7)
    means = {text: torch.randn(SHAPE, generator=generator) for text in TEXTS}
    return kind(means, VARIANCE, prediction_type)


def latents(count, seed=0):
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


def branches(prior, count, g=7.5, perp_neg=False):
    hidden = prior.embed(TEXTS).unsqueeze(1).expand(-1, count, -1, -1)  # [4, B, 1, D]
    if not perp_neg:
        return cfg(hidden[0], hidden[1], g)
    negatives = torch.tensor([[-0.8], [-1.5]]).repeat(1, count)
    negatives[1, -1] = 0.0
    return Conditioning(hidden, g, negatives=negatives)


class Published:
    """SDI's formulas for one sample in float64, from 2405.15891 and 2304.04968; no code of the package."""

    def __init__(self, prior, perp_neg, last):
        self.means = [prior.mean[text].double() for text in TEXTS]
        betas = [
            (math.sqrt(0.00085) + i / 999 * (math.sqrt(0.012) - math.sqrt(0.00085))) ** 2 for i in range(1000)
        ]
        self.alpha_bar = []
        product = 1.0
        for beta in betas:
            product *= 1.0 - beta
            self.alpha_bar.append(product)
        self.kind, self.perp_neg, self.last = prior.prediction_type, perp_neg, last
        self.clean = prior.clean_alpha_bar

    def output(self, x, t, mean):
        """Return the optimal prediction for N(mean, VARIANCE) at timestep t, with the alpha_bar of t."""
        ab = self.alpha_bar[t] if t >= 0 else self.clean
        x_0 = mean + math.sqrt(ab) * VARIANCE / (ab * VARIANCE + 1 - ab) * (x - math.sqrt(ab) * mean)
        eps = math.sqrt(1 - ab) * (x - math.sqrt(ab) * mean) / (ab * VARIANCE + 1 - ab)
        v = math.sqrt(ab) * eps - math.sqrt(1 - ab) * x_0
        return {"epsilon": eps, "sample": x_0, "v_prediction": v, "flow": eps - x_0}[self.kind]

    def to_eps(self, m, x, ab):
        if self.kind == "epsilon":
            return m
        if self.kind == "v_prediction":
            return math.sqrt(ab) * m + math.sqrt(1 - ab) * x
        if self.kind == "sample":
            return (x - math.sqrt(ab) * m) / math.sqrt(1 - ab)
        x_0 = (x - math.sqrt(1 - ab) * m) / (math.sqrt(ab) + math.sqrt(1 - ab))  # m = eps - x_0
        return m + x_0

    def guided(self, x, t, ab, g):
        e = [self.to_eps(self.output(x, t, mean), x, ab) for mean in self.means]
        if not self.perp_neg:
            return e[0] + g * (e[1] - e[0])
        positive = e[1] - e[0]
        total = positive.clone()
        for weight, negative in zip((-0.8, 0.0 if self.last else -1.5), e[2:], strict=True):
            d = negative - e[0]
            along = (d * positive).sum() / max((positive * positive).sum(), 1e-300)
            total += weight * (d - along * positive)
        return e[0] + g * total

    def move(self, x, t, ab, ab_next, g):
        e = self.guided(x, t, ab, g)
        x_0 = (x - math.sqrt(1 - ab) * e) / math.sqrt(ab)
        return math.sqrt(ab_next) * x_0 + math.sqrt(1 - ab_next) * e

    def paper(self, z, t, s, n, g_inv, eta_noise):
        x = z.double()
        points = [point for point in range(0, 1000, 1000 // n) if point < s] + [s]
        first = self.alpha_bar[0] if self.kind == "sample" else 1.0
        for i, (now, following) in enumerate(itertools.pairwise(points)):
            ab = first if i == 0 else self.alpha_bar[now]
            x = self.move(x, now, ab, self.alpha_bar[following], g_inv)
        ab_s, ab_t = self.alpha_bar[s], self.alpha_bar[t]
        x = x + math.sqrt(1 - ab_s) * eta_noise
        kappa = (x - math.sqrt(ab_s) * z.double()) / math.sqrt(1 - ab_s)
        return kappa, math.sqrt(ab_t) * z.double() + math.sqrt(1 - ab_t) * kappa

    def code(self, z, t, s, n, g_inv, noises):
        x = z.double()
        stride = 1000 // n
        points = [point for point in range(1 - stride, 1000, stride) if point < t] + [s]
        for i, (now, following) in enumerate(itertools.pairwise(points)):
            ab, ab_next = (self.alpha_bar[now] if now >= 0 else self.clean), self.alpha_bar[following]
            x = self.move(x, now, ab, ab_next, g_inv)
            x = x + math.sqrt((1 - ab) / (1 - ab_next) * (1 - ab_next / ab)) * noises[i]
        ab_s = self.alpha_bar[s]
        return (x - math.sqrt(ab_s) * z.double()) / math.sqrt(1 - ab_s), x


T_MIXED = [9, 100, 205, 333, 640, 980]


@pytest.mark.parametrize("perp_neg", [False, True])
@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("settings", [Inversion(), Inversion(4, 0.0, 0.0, 0.0)])
def test_kappa_agrees_with_the_papers_formulas(prediction_type, perp_neg, settings):
    prior, z, t = toy(prediction_type), latents(6), torch.tensor(T_MIXED)
    cond = branches(prior, 6, perp_neg=perp_neg)
    kappa, z_t = ddim_inversion(prior, z, t, cond, settings, torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    shift = torch.zeros(6, dtype=torch.long)
    if settings.tau:
        shift = (torch.rand(6, generator=generator, dtype=torch.float64) * settings.tau * 1000).floor().long()
    noise = settings.eta * torch.randn(6, *SHAPE, generator=generator)
    for b, timestep in enumerate(T_MIXED):
        formulas = Published(prior, perp_neg, last=b == 5)
        landing = min(timestep + int(shift[b]), 999)
        expected = formulas.paper(
            z[b], timestep, landing, settings.steps, settings.guidance, noise[b].double()
        )
        # eps from a predicted x0 at timestep 0 divides rounding by sqrt(1 - alpha_bar) = 0.03
        atol = 5e-4 if prediction_type == "sample" else 1e-5
        torch.testing.assert_close(kappa[b].double(), expected[0], atol=atol, rtol=1e-5)
        torch.testing.assert_close(z_t[b].double(), expected[1], atol=atol, rtol=1e-5)


@pytest.mark.parametrize("set_alpha_to_one", [False, True])
@pytest.mark.parametrize("perp_neg", [False, True])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_published_form_agrees_with_the_codes_formulas(prediction_type, perp_neg, set_alpha_to_one):
    """alpha_bar at the clean end is the scheduler's: 1, or alphas_cumprod[0] as in Stable Diffusion's."""
    prior, z, t = toy(prediction_type), latents(6), torch.tensor(T_MIXED)
    prior.clean_alpha_bar = 1.0 if set_alpha_to_one else prior.alphas_cumprod[0].item()
    settings = Inversion(tau=0.1, published=True)
    cond = branches(prior, 6, perp_neg=perp_neg)
    kappa, z_t = ddim_inversion(prior, z, t, cond, settings, torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    shift = (torch.rand(6, generator=generator, dtype=torch.float64) * 100).floor().long()
    noise = [0.3 * torch.randn(6, *SHAPE, generator=generator).double() for _ in range(11)]
    for b, timestep in enumerate(T_MIXED):
        formulas = Published(prior, perp_neg, last=b == 5)
        landing = min(timestep + int(shift[b]), 999)
        expected = formulas.code(z[b], timestep, landing, 10, -7.5, [step[b] for step in noise])
        torch.testing.assert_close(kappa[b].double(), expected[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(z_t[b].double(), expected[1], atol=1e-5, rtol=1e-5)


def test_grids_start_at_the_clean_end():
    assert inversion_grid(1000, Inversion()).tolist() == list(range(0, 1000, 100))
    assert inversion_grid(1000, Inversion(published=True)).tolist() == list(range(-99, 1000, 100))
    assert inversion_grid(1000, Inversion(3)).tolist() == [0, 333, 666]


def test_a_sample_that_has_landed_leaves_the_batch():
    prior = toy(kind=RecordingPrior)
    settings = Inversion(steps=4, tau=0.0)
    ddim_inversion(prior, latents(3), torch.tensor([600, 100, 251]), branches(prior, 3), settings)
    assert [t for t, _ in prior.calls] == [[0, 0, 0], [250, 250], [500]]


@pytest.mark.parametrize(
    ("g_inv", "active"), [(0.0, [True, False]), (1.0, [False, True]), (-7.5, [True, True])]
)
def test_inversion_has_its_own_guidance_scale(g_inv, active):
    prior = toy(kind=RecordingPrior)
    settings = Inversion(4, g_inv, tau=0.0)
    ddim_inversion(prior, latents(2), torch.tensor([300, 400]), branches(prior, 2, g=100.0), settings)
    assert all(call[1] == active for call in prior.calls)


@pytest.mark.parametrize("perp_neg", [False, True])
def test_kappa_of_a_sample_is_the_same_alone_and_in_a_batch(perp_neg):
    prior, z, t = toy("v_prediction"), latents(6), torch.tensor(T_MIXED)
    settings = Inversion(eta=0.0, tau=0.0)
    cond = branches(prior, 6, perp_neg=perp_neg)
    together, _ = ddim_inversion(prior, z, t, cond, settings)
    for b in range(6):
        index = torch.tensor([b])
        alone, _ = ddim_inversion(prior, z[index], t[index], cond.select(index), settings)
        torch.testing.assert_close(together[index], alone, atol=1e-6, rtol=1e-6)


def test_without_eta_and_tau_nothing_is_drawn_and_inversion_repeats_itself():
    prior, z, t = toy(), latents(2), torch.tensor([300, 700])
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    settings = Inversion(eta=0.0, tau=0.0)
    first, _ = ddim_inversion(prior, z, t, branches(prior, 2), settings, generator)
    again, _ = ddim_inversion(prior, z, t, branches(prior, 2), settings, generator)
    assert torch.equal(first, again) and torch.equal(generator.get_state(), before)


def test_the_most_likely_latents_have_no_noise():
    prior = toy()
    z = prior.mean["text"].unsqueeze(0)
    settings = Inversion(guidance=1.0, eta=0.0, tau=0.0)
    kappa, _ = ddim_inversion(prior, z, torch.tensor([500]), branches(prior, 1), settings)
    torch.testing.assert_close(kappa, torch.zeros_like(z), atol=1e-3, rtol=0.0)


def test_eta_adds_noise_of_its_size_to_kappa():
    prior, count = toy(), 2000
    z, t, cond = latents(1).repeat(count, 1, 1, 1), torch.full((count,), 400), branches(prior, count)
    settings = Inversion(2, tau=0.0)
    noisy, _ = ddim_inversion(prior, z, t, cond, settings, torch.Generator().manual_seed(0))
    plain, _ = ddim_inversion(prior, z, t, cond, Inversion(2, eta=0.0, tau=0.0))
    assert (noisy - plain).std().item() == pytest.approx(0.3, rel=0.02)


def test_landing_stays_in_the_table_and_within_tau():
    t = torch.tensor([500] * 1000 + [999])
    landing = landing_timesteps(t, 1000, Inversion(), torch.Generator().manual_seed(0))
    assert landing[:-1].min() == 500 and landing[:-1].max() == 533 and landing[-1] == 999


def test_inversion_leaves_z_and_its_graph_alone():
    prior, z = toy(), latents(1).requires_grad_()
    kept = z.detach().clone()
    kappa, z_t = ddim_inversion(prior, z, torch.tensor([300]), branches(prior, 1), Inversion())
    assert torch.equal(z, kept) and not kappa.requires_grad and not z_t.requires_grad


def test_random_noise_is_standard_and_mixes_at_the_level_of_t():
    prior, z, t = toy(), latents(500), torch.full((500,), 300)
    query = Query(prior, z, t, branches(prior, 500), torch.Generator().manual_seed(0))
    eps, z_t, _ = SDS().compare(query, State())
    assert eps.mean().abs() < 0.03 and abs(eps.std() - 1.0) < 0.03
    alpha_bar = prior.alphas_cumprod[300]
    torch.testing.assert_close(z_t, (alpha_bar.sqrt() * z + (1 - alpha_bar).sqrt() * eps).float())


def test_fixed_noise_is_what_was_given():
    prior, z = toy(), latents(2)
    query = Query(prior, z, torch.tensor([1, 2]), branches(prior, 2))
    eps, _, _ = FixedNoise(eps=latents(2, seed=5)).compare(query, State())
    assert torch.equal(eps, latents(2, seed=5))


@pytest.mark.parametrize("values", [{"steps": 0}, {"eta": -0.1}, {"tau": 1.0}])
def test_settings_out_of_range_are_refused(values):
    with pytest.raises(ValueError, match="inversion"):
        Inversion(**values)


def test_views_of_a_group_land_together():
    t = torch.full((8,), 300)
    landing = landing_timesteps(t, 1000, Inversion(), torch.Generator().manual_seed(0), group=4)
    assert (landing.view(2, 4) == landing.view(2, 4)[:, :1]).all() and landing[0] != landing[4]
