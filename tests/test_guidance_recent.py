"""The newer methods on a Gaussian, whose score is known, against their papers' equations written out here."""

# pyright: reportArgumentType=false

from dataclasses import replace

import pytest
import torch
from gaussian import COUNT, KINDS, SHAPE, VARIANCE, Known, T, at, close, latents

from splatdistill.guidance.bridge import SDSBridge
from splatdistill.guidance.core import PROMPT, distill
from splatdistill.guidance.flow import FlowSDI
from splatdistill.guidance.guide import Guide
from splatdistill.guidance.hifa import HiFA
from splatdistill.guidance.methods import SDI
from splatdistill.guidance.registry import METHODS
from splatdistill.guidance.sctd import SCTD
from splatdistill.priors.base import ToyPrior

every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind[1])


@every_kind
def test_asd_compares_with_the_text_at_a_noisier_level(kind) -> None:
    known, z = Known(kind), latents(0)
    generator = torch.Generator().manual_seed(4)
    eps = torch.randn(z.shape, generator=generator)
    u = torch.rand(COUNT, generator=generator, dtype=torch.float64)
    noisier = T + (u * torch.minimum(0.1 * (T - 20).double(), 999.0 - T)).long()
    compared = known.score(known.noised(z, noisier, eps), noisier, "text")
    expected = (1 - known.ab(T)) * (known.guided(known.noised(z, T, eps), T, 7.5) - compared)
    close(known.gradient("asd", z, 7.5), expected)


@every_kind
def test_the_bridge_leads_from_the_faults_to_the_target(kind) -> None:
    known, z = Known(kind), latents(0)
    eps = torch.randn(z.shape, generator=torch.Generator().manual_seed(4))
    x, cond = known.noised(z, T, eps), known.cond(100.0, "target", "faults")
    first = known.gradient("sds_bridge", z, 100.0, cond=cond, progress=0.4)
    close(first, (1 - known.ab(T)) * (known.guided(x, T, 100.0) - eps))
    second = known.gradient("sds_bridge", z, 100.0, cond=cond, progress=0.6)
    close(second, (1 - known.ab(T)) * (known.score(x, T, "target") - known.score(x, T, "faults")))


def test_the_bridges_texts_hold_the_prompt_of_each_view() -> None:
    bridge = SDSBridge(target=", sharp", faults=", foggy")
    assert bridge.other_texts("", True) == (f"{PROMPT}, sharp", f"{PROMPT}, foggy")
    assert bridge.other_texts("", False) == (PROMPT, "")
    guide = Guide(ToyPrior(torch.zeros(3, 2, 2)), bridge, "a dog", negative="ugly")
    assert [other.text("side view") for other in guide.others] == [
        "a dog, sharp, side view",
        "a dog, foggy, side view",
    ]
    assert guide.prompts.negative == "ugly"


def flow_of(known: Known, x: torch.Tensor, s: torch.Tensor, text: str) -> torch.Tensor:
    """Return the optimal velocity E[eps - z | x_s] of a flow on N(mean, variance)."""
    mean = known.prior.mean[text].double()
    surprise = (x - (1 - s) * mean) / ((1 - s) ** 2 * VARIANCE + s**2)
    return s * surprise - (mean + (1 - s) * VARIANCE * surprise)


def velocity(known: Known, x: torch.Tensor, s: torch.Tensor, g: float) -> torch.Tensor:
    null = flow_of(known, x, s, "")
    return null + g * (flow_of(known, x, s, "text") - null)


def test_rfds_is_the_difference_of_velocities() -> None:
    known, z = Known(("flow", "flow")), latents(0).double()
    eps = torch.randn(z.shape, generator=torch.Generator().manual_seed(4)).double()
    s = at((T + 1) / 1000)
    expected = velocity(known, (1 - s) * z + s * eps, s, 100.0) - (eps - z)
    close(known.gradient("rfds", z.float(), 100.0), expected)


def test_rfds_rev_reverses_the_noise_first() -> None:
    known, z = Known(("flow", "flow")), latents(0).double()
    eps = torch.randn(z.shape, generator=torch.Generator().manual_seed(4)).double()
    s = at((T + 1) / 1000)
    eps = eps + (1 - s) * (flow_of(known, (1 - s) * z + s * eps, s, "text") + z - eps)
    expected = velocity(known, (1 - s) * z + s * eps, s, 100.0) - (eps - z)
    close(known.gradient("rfds_rev", z.float(), 100.0), expected)


@pytest.mark.parametrize("name", ["rfds", "rfds_rev"])
@every_kind
def test_flow_methods_do_not_depend_on_what_the_network_predicts(name: str, kind) -> None:
    known, z = Known(kind), latents(0)
    same = Known((kind[0], "epsilon"))
    close(known.gradient(name, z, 100.0), same.gradient(name, z, 100.0))


def test_flow_sdi_inverts_the_flow_by_euler_steps() -> None:
    """From s = 0 with g = -7.5 on a grid of T / 10 to the landing; with that eps, one step back, g = 7.5."""
    known, z = Known(("flow", "flow")), latents(0).double()
    u = torch.rand(COUNT, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    landing = (T + (u * 1000 / 30).long()).clamp(max=999)
    rows = []
    for b in range(COUNT):
        x, last = z[b : b + 1], int(landing[b])
        grid = [t for t in range(0, 1000, 100) if t < last]
        times = [0.0] + [(t + 1) / 1000 for t in [*grid[1:], last]]  # the clean end is at s = 0
        for t, now, following in zip(grid, times[:-1], times[1:], strict=True):
            told = torch.tensor((t + 1) / 1000).double()  # the network is told the time of its own table
            shown = x * ((1 - told) ** 2 + told**2).sqrt() if not now else x
            x = x + (following - now) * velocity(known, shown, told, -7.5)
        eps = (x - (1 - times[-1]) * z[b]) / times[-1]
        s = at((T[b : b + 1] + 1) / 1000)
        x = (1 - s) * z[b] + s * eps
        rows.append(z[b] - (x - s * velocity(known, x, s, 7.5)))
    close(known.gradient("flow_sdi", z.float(), 7.5), torch.cat(rows))


def test_flow_sdi_adds_no_noise() -> None:
    assert FlowSDI().inversion == replace(SDI().inversion, eta=0.0)


@every_kind
def test_sctd_is_its_two_terms_on_a_segment(kind) -> None:
    known, z, g = Known(kind), latents(0), 7.5
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).expand_as(z)
    u = torch.rand(COUNT, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    e = torch.tensor([0, 212, 788])  # of the edges 20, 212, 404, ..., and at least 80 below t
    s = e + ((T - e) * (0.125 + 0.75 * u)).long()
    x_e = known.noised(z, e, noise)
    x_s = known.moved(x_e, known.score(x_e, e, ""), e, s)
    x_t = known.moved(x_s, known.score(x_s, s, ""), s, T)
    guided = known.guided(x_t, T, g)
    back = known.moved(x_t, guided, T, s)
    back = known.moved(back, known.score(back, s, ""), s, e)
    terms = (back - x_e) + (g + 1) * (x_e - known.moved(x_t, guided, T, e))
    ab = known.ab(T)
    close(known.gradient("sctd", z, g), ((1 - ab) / ab).sqrt() * terms)


def test_sctd_does_not_draw_another_noise_in_the_next_step() -> None:
    known, z, sctd = Known(), latents(0), SCTD()
    state = sctd.start(known.prior, 3)
    found = [
        distill(known.prior, z, T, known.cond(7.5), sctd, torch.Generator().manual_seed(4), state=state)
        for _ in range(2)
    ]
    assert torch.equal(found[0].gradient, found[1].gradient)
    other = distill(
        known.prior,
        z,
        T,
        known.cond(7.5),
        sctd,
        torch.Generator().manual_seed(4),
        state=sctd.start(known.prior, 4),
    )
    assert not torch.equal(other.gradient, found[0].gradient)


def test_hifa_adds_the_distance_of_the_pictures() -> None:
    """W (|z - z_hat|^2 + .1 |x - D(z_hat)|^2) / 2 with w = sqrt(ab (1 - ab)); without the second, SDS."""
    generator = torch.Generator().manual_seed(7)
    prior = ToyPrior(torch.rand(SHAPE, generator=generator), VARIANCE)
    rgb = torch.rand(2, 2, 2, 3, generator=generator)

    def gradient(hifa: HiFA) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        picture = rgb.clone().requires_grad_()
        guide = Guide(prior, hifa, "text", views="plain")
        out = guide(picture, 0.4, generator=torch.Generator().manual_seed(4))
        out.loss.backward()
        assert picture.grad is not None and out.x0_hat is not None
        return picture.grad, prior.decode(out.x0_hat), out.t

    both, target, t = gradient(HiFA(guidance=1.0))
    alone, _, _ = gradient(HiFA(guidance=1.0, pixels=0.0))
    ab = prior.alphas_cumprod[t].view(-1, 1, 1, 1)
    w = (ab * (1 - ab)).sqrt().float()
    expected = 0.1 * w * (rgb - target.permute(0, 2, 3, 1)) / 2
    torch.testing.assert_close(both - alone, expected, atol=1e-6, rtol=1e-4)
    assert HiFA().timesteps.range(0.25)[0] == pytest.approx(0.5)  # the square root of progress


def test_their_published_guidance() -> None:
    expected = {
        "asd": 7.5,
        "sds_bridge": 100.0,
        "rfds": 100.0,
        "rfds_rev": 100.0,
        "flow_sdi": 7.5,
        "cfd": 75.0,
        "hifa": 100.0,
        "sctd": 7.5,
    }
    assert {name: METHODS[name]().guidance for name in expected} == expected


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("asd", {"spread": -1.0}),
        ("sds_bridge", {"begin": 2.0}),
        ("cfd", {"renewed": -0.1}),
        ("hifa", {"pixels": -1.0}),
        ("sctd", {"segments": 0}),
    ],
)
def test_settings_out_of_range_are_refused(name: str, wrong: dict) -> None:
    with pytest.raises(ValueError, match=name):
        METHODS[name](**wrong)
