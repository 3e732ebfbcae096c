"""Every method on a Gaussian, whose score is known, against its paper's equation written out here."""

# pyright: reportArgumentType=false

import math
from itertools import pairwise

import pytest
import torch

from splatdistill.guidance.core import distill, sample
from splatdistill.guidance.dsd import DSD, DSDPublished
from splatdistill.guidance.latents import dsd_star
from splatdistill.guidance.methods import PDS
from splatdistill.guidance.noise import path_along, walk
from splatdistill.guidance.query import Source
from splatdistill.guidance.registry import METHODS
from splatdistill.priors.base import ToyPrior, cfg, scaled_linear_alphas_cumprod

SHAPE, VARIANCE = (3, 2, 2), 0.5
PREDICTIONS = ["epsilon", "v_prediction", "sample", "flow"]
TEXTS = ("", "text", "source", "ugly")
T = torch.tensor([80, 400, 901])
AB = scaled_linear_alphas_cumprod()


def toy(prediction_type: str = "epsilon") -> ToyPrior:
    generator = torch.Generator().manual_seed(7)
    return ToyPrior(
        {text: torch.randn(SHAPE, generator=generator) for text in TEXTS}, VARIANCE, prediction_type
    )


def latents(seed: int) -> torch.Tensor:
    return torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(seed))


def branches(prior: ToyPrior, g: float, text: str = "text"):
    hidden = prior.embed(["", text]).unsqueeze(1).expand(-1, 3, -1, -1)
    return cfg(hidden[0], hidden[1], g)


def at(values: torch.Tensor) -> torch.Tensor:
    return values.double().view(-1, 1, 1, 1)


def score(prior: ToyPrior, x: torch.Tensor, t: torch.Tensor, text: str) -> torch.Tensor:
    """Return the optimal noise prediction for N(mean, variance), in float64."""
    ab, mean = at(AB[t]), prior.mean[text].double()
    return (1 - ab).sqrt() * (x.double() - ab.sqrt() * mean) / (ab * VARIANCE + 1 - ab)


def guided(prior: ToyPrior, x: torch.Tensor, t: torch.Tensor, g: float, text: str = "text") -> torch.Tensor:
    null = score(prior, x, t, "")
    return null + g * (score(prior, x, t, text) - null)


def noised(z: torch.Tensor, t: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
    return at(AB[t]).sqrt() * z.double() + (1 - at(AB[t])).sqrt() * eps.double()


def drawn(seed: int = 4) -> torch.Tensor:
    return torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(seed))


def gradient(name: str, prior: ToyPrior, z: torch.Tensor, g: float, **more) -> torch.Tensor:
    cond = more.pop("cond", None) or branches(prior, g)
    generator = torch.Generator().manual_seed(4)
    return distill(prior, z, T, cond, METHODS[name](), generator, **more).gradient.double()


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-4 * expected.abs().max().item(), rtol=1e-4)


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_sjc_is_the_score_of_the_noised_picture_without_its_noise(prediction_type: str) -> None:
    """(z - D(z + sigma n)) / sigma^2 with the denoiser of a variance-exploding process."""
    prior, z, n = toy(prediction_type), latents(0), drawn()
    sigma = ((1 - at(AB[T])) / at(AB[T])).sqrt()
    x, mean = z.double() + sigma * n.double(), prior.mean["text"].double()
    denoised = (VARIANCE * x + sigma.square() * mean) / (VARIANCE + sigma.square())
    close(gradient("sjc", prior, z, 1.0), (z.double() - denoised) / sigma.square())


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_csd_is_the_difference_of_text_and_null(prediction_type: str) -> None:
    prior, z = toy(prediction_type), latents(0)
    x = noised(z, T, drawn())
    expected = (1 - at(AB[T])) * (score(prior, x, T, "text") - score(prior, x, T, ""))
    close(gradient("csd", prior, z, 1.0), expected)


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("negative", [None, "ugly"])
def test_nfsd_drops_the_noise(prediction_type: str, negative: str | None) -> None:
    """g (e_y - e_null) + (e_null below 200, else e_null - e_negative)."""
    from dataclasses import replace

    prior, z = toy(prediction_type), latents(0)
    cond = branches(prior, 7.5)
    if negative:
        cond = replace(cond, others=prior.embed([negative]).expand(1, 3, -1, -1))
    x = noised(z, T, drawn())
    null, text = score(prior, x, T, ""), score(prior, x, T, "text")
    late = at(T) < 200
    domain = torch.where(late, null, null - score(prior, x, T, negative or ""))
    expected = (1 - at(AB[T])) * (7.5 * (text - null) + domain)
    close(gradient("nfsd", prior, z, 7.5, cond=cond), expected)


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_dds_is_the_difference_of_target_and_source(prediction_type: str) -> None:
    prior, z, origin = toy(prediction_type), latents(0), latents(1)
    eps = drawn()
    expected = guided(prior, noised(z, T, eps), T, 7.5) - guided(
        prior, noised(origin, T, eps), T, 7.5, "source"
    )
    source = Source(origin, branches(prior, 7.5, "source"))
    close(gradient("dds", prior, z, 7.5, source=source), expected)


def test_dds_of_the_source_itself_is_zero() -> None:
    prior, z = toy(), latents(0)
    source = Source(z, branches(prior, 7.5))
    assert gradient("dds", prior, z, 7.5, source=source).abs().max() < 1e-5
    assert gradient("pds", prior, z, 100.0, source=Source(z, branches(prior, 100.0))).abs().max() < 1e-2


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_pds_is_the_difference_of_stochastic_latents(prediction_type: str) -> None:
    """ztilde = (z_t' - mu) / sigma, the same noises for target and source; t' two below t, beta that of t."""
    prior, z, origin = toy(prediction_type), latents(0), latents(1)
    eps, other = drawn(), drawn(11)
    below = T - 2
    ab, ab_below, alpha = at(AB[T]), at(AB[below]), at(AB[T] / AB[T - 1])
    sigma = ((1 - ab_below) / (1 - ab) * (1 - alpha)).sqrt()

    def stochastic(clean: torch.Tensor, text: str) -> torch.Tensor:
        x = noised(clean, T, eps)
        e = guided(prior, x, T, 30.0, text)
        x0 = (x - (1 - ab).sqrt() * e) / ab.sqrt()
        mu = ab_below.sqrt() * (1 - alpha) / (1 - ab) * x0 + alpha.sqrt() * (1 - ab_below) / (1 - ab) * x
        return (noised(clean, below, other) - mu) / sigma

    expected = stochastic(z, "text") - stochastic(origin, "source")
    source = Source(origin, branches(prior, 30.0, "source"))
    close(gradient("pds", prior, z, 30.0, source=source), expected)


def test_pds_pulls_toward_the_source_only_by_its_mismatch_of_steps() -> None:
    """With a posterior of the same two levels psi would vanish, and PDS be DDS with another weight."""
    chi, pull = PDS().coefficients(toy(), T)
    assert (chi > 0).all() and (pull > 0).all()
    ab, below = AB[T], AB[T - 2]
    consistent = (
        below.sqrt() * (1 - ab / below) / (1 - ab) + (ab / below).sqrt() * (1 - below) / (1 - ab) * ab.sqrt()
    )
    torch.testing.assert_close(consistent, below.sqrt())


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_dreamcatalyst_weighs_the_difference_and_the_pull_by_the_level(prediction_type: str) -> None:
    """(.2 + .8 tau^(1/e)) (e_tgt - e_src) + .075 exp(tau) (z - zsrc), one noise for both, tau = t / T."""
    prior, z, origin, eps = toy(prediction_type), latents(0), latents(1), drawn()
    tau = at(T) / 1000
    difference = guided(prior, noised(z, T, eps), T, 7.5) - guided(
        prior, noised(origin, T, eps), T, 7.5, "source"
    )
    expected = (0.2 + 0.8 * tau ** (1 / math.e)) * difference + 0.075 * tau.exp() * (z - origin)
    source = Source(origin, branches(prior, 7.5, "source"))
    close(gradient("dreamcatalyst", prior, z, 7.5, source=source), expected)
    levels = [METHODS["dreamcatalyst"]().timesteps.range(step)[1] for step in (0.0, 0.5, 1.0)]
    assert levels == sorted(levels, reverse=True)


def test_editing_methods_say_what_they_lack() -> None:
    prior = toy()
    with pytest.raises(ValueError, match="source"):
        gradient("dds", prior, latents(0), 7.5)


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_ism_compares_with_the_null_prediction_before(prediction_type: str) -> None:
    """Unconditional DDIM inversion in strides of 200 to s, then one step to t."""
    prior, z = toy(prediction_type), latents(0)
    u = torch.rand(3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    s = (T - (1000 * (0.05 + 0.05 * u)).long()).clamp(min=0)
    first = AB[0] if prediction_type == "sample" else torch.ones((), dtype=torch.float64)
    rows = []
    for b in range(3):
        x, level, compared = z[b : b + 1].double(), first, z[:1]
        path = [*range(0, int(s[b]), 200), int(s[b]), int(T[b])]
        for now, following in pairwise(path):
            null = score(prior, x, torch.tensor([now]), "")
            e = null if now else _clean_score(prior, x, prediction_type)
            compared = e if following == int(T[b]) else compared
            clean = (x - (1 - level).sqrt() * e) / level.sqrt()
            level = AB[following]
            x = level.sqrt() * clean + (1 - level).sqrt() * e
        ab = AB[T[b]]
        rows.append(((1 - ab) / ab).sqrt() * (guided(prior, x, T[b : b + 1], 7.5) - compared))
    close(gradient("ism", prior, z, 7.5), torch.cat(rows))


def _clean_score(prior: ToyPrior, x: torch.Tensor, prediction_type: str) -> torch.Tensor:
    """Return the prediction at clean latents and timestep 0, at the noise level that inversion uses."""
    t = torch.zeros(len(x), dtype=torch.long)
    e = score(prior, x, t, "")
    ab = AB[0]
    if prediction_type == "epsilon":
        return e
    clean = (x - (1 - ab).sqrt() * e) / ab.sqrt()
    if prediction_type == "v_prediction":  # v read at alpha_bar 1 is eps
        return ab.sqrt() * e - (1 - ab).sqrt() * clean
    if prediction_type == "flow":
        return e - clean + x
    return e


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_dsd_compares_two_levels_under_the_noise_of_its_path(prediction_type: str) -> None:
    prior, z = toy(prediction_type), latents(0)
    start = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).double()
    u = torch.rand(3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    room = torch.minimum((0.1 * (T - 320)).clamp(min=0), 999.0 - T)
    further = (T + (room * u).long()).clamp(1, 999)
    rows = []
    for b in range(3):
        grid = [step for step in torch.linspace(999, 0, 11).long().tolist() if step > further[b]]
        x, path = start[None], [*grid, int(further[b])]
        for now, following in pairwise(path):
            e = guided(prior, x, torch.tensor([now]), 7.5)
            clean = (x - (1 - AB[now]).sqrt() * e) / AB[now].sqrt()
            x = AB[following].sqrt() * clean + (1 - AB[following]).sqrt() * e
        there, here, own = further[b : b + 1], T[b : b + 1], z[b : b + 1]
        eps = guided(prior, x, there, 7.5)
        compared = score(prior, noised(own, there, eps), there, "text")
        rows.append((1 - AB[here]).item() * (guided(prior, noised(own, here, eps), here, 7.5) - compared))
    close(gradient("dsd", prior, z, 7.5), torch.cat(rows))


def test_dsd_published_has_the_scales_of_its_codes_classifier_free_guidance() -> None:
    published = DSDPublished()
    assert (published.guidance, published.compared) == (8.5, 2.0)  # text + s (text - null), s 7.5 and 1


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_dsd_with_a_step_for_each_of_ddims_is_the_ddim_sample(prediction_type: str) -> None:
    prior, steps, seed = toy(prediction_type), 12, 3
    cond = branches(prior, 7.5)
    found = dsd_star(prior, cond, steps, seed, 3)
    start = torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)).expand(3, *SHAPE)
    path = torch.linspace(999, 0, steps + 1).long().expand(3, -1)
    last = walk(prior, start, path, torch.full((3,), steps), cond)
    clean = torch.full((3,), -1)
    end = walk(prior, last, torch.stack([path[:, -1], clean], dim=1), torch.ones(3).long(), cond)
    torch.testing.assert_close(found, end, atol=1e-4, rtol=1e-5)


def test_all_methods_have_the_published_defaults() -> None:
    defaults = {
        "sds": 100.0,
        "sjc": 100.0,
        "sdi": 7.5,
        "dsd": 7.5,
        "dds": 7.5,
        "pds": 100.0,
        "dreamcatalyst": 7.5,
        "csd": 1.0,
        "nfsd": 7.5,
        "ism": 7.5,
    }
    assert {name: METHODS[name]().guidance for name in defaults} == defaults
    dsd = DSD().timesteps
    assert dsd.range(0.0) == (0.98, 0.98) and dsd.range(1.0) == pytest.approx((0.32, 0.32))
    assert dsd.range(0.25)[0] == pytest.approx(0.65)  # the square root of progress


def test_walks_of_different_lengths_do_not_disturb_each_other() -> None:
    prior, x, cond = toy(), latents(2), branches(toy(), 3.0)
    grid, last, moves = (
        torch.tensor([999, 700, 400, 100]),
        torch.tensor([650, 350, 50]),
        torch.tensor([2, 3, 4]),
    )
    together = walk(prior, x, path_along(grid, moves, last), moves, cond)
    for b in range(3):
        index = torch.tensor([b])
        alone = walk(
            prior, x[index], path_along(grid, moves[index], last[index]), moves[index], cond.select(index)
        )
        torch.testing.assert_close(together[index], alone)
    assert sample(prior, cond, x, 4).isfinite().all()
