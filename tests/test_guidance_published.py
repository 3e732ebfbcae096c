"""Noise, targets and gradients against vectors from the authors' published code, on the same inputs.

published_vectors.json was computed in float64, outside this package, by the arithmetic of
- SDI: threestudio, models/guidance/stable_diffusion_sdi_guidance.py at 1ade495 (compute_grad_sdi),
- DSD: BillyXYB/Diverse-Score-Distillation at 557923c (compute_grad_dsd),
- PDS and SDS: KAIST-Visual-AI-Group/PDS, pds/pds.py at 24e8d44,
- DDS: google/prompt-to-prompt, DDS_zeroshot.ipynb at 51995c7 (get_dds_loss, its default exponents 0),
with the network, latents and draws below in place of Stable Diffusion and of random numbers; alpha_bar is
Stable Diffusion's, and 1 at the clean end.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from splatdistill.guidance.core import Method, distill
from splatdistill.guidance.dsd import PathStart
from splatdistill.guidance.methods import SDI
from splatdistill.guidance.noise import Inversion, ddim_inversion
from splatdistill.guidance.query import Source
from splatdistill.guidance.registry import METHODS
from splatdistill.priors.base import Conditioning, ToyPrior, cfg, run_branches

SHAPE = (4, 2, 2)
CASES = json.loads((Path(__file__).parent / "published_vectors.json").read_text())
TEXT, NULL, NEGATIVES, SOURCE = 0.6, -0.3, (0.2, -0.7), 0.1
NEGATIVE_WEIGHTS = (-0.8, -1.5)
UNIFORM = 0.63


def wave(a: float, b: float) -> Tensor:
    """sin(a i + b) for i = 1, 2, ... [1,4,2,2], float64."""
    return torch.sin(a * torch.arange(1, 17, dtype=torch.float64) + b).view(1, *SHAPE)


Z = wave(1.7, 0.3)
ORIGIN = Z + 0.3 * wave(2.3, 1.1)
EPS = 1.2 * wave(3.1, 0.7)
START = 1.3 * wave(0.9, 2.0)


class StandIn(ToyPrior):
    """A curved network in place of Stable Diffusion's; a text's embedding is one number."""

    def predict(self, z_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """tanh(c z + .4 cos(t / 100) + y) + .1 sin(3 y z)."""
        gain = torch.tensor([0.9, 0.7, 0.5, 1.1], dtype=torch.float64).view(-1, 1, 1)

        def network(x: Tensor, at: Tensor, embeddings: Tensor) -> Tensor:
            text = embeddings.view(-1, 1, 1, 1)
            shift = 0.4 * torch.cos(0.01 * at.double()).view(-1, 1, 1, 1) + text
            return torch.tanh(gain * x + shift) + 0.1 * torch.sin(3 * x * text)

        return run_branches(network, z_t, t, cond)


def branches(case: dict[str, Any], guidance: float, text: float = TEXT) -> Conditioning:
    values = (NULL, text, *(NEGATIVES if case["perp_neg"] else ()))
    hidden = torch.tensor(values, dtype=torch.float64).view(-1, 1, 1, 1)
    if not case["perp_neg"]:
        return cfg(hidden[0], hidden[1], guidance)
    return Conditioning(hidden, guidance, negatives=torch.tensor(NEGATIVE_WEIGHTS).view(-1, 1))


def method_of(case: dict[str, Any]) -> Method:
    """Where CFG of the code is not the paper's, it has a setting of its own, with and without perp-neg."""
    if case["method"] == "sdi":
        return METHODS["sdi_published_perp_neg" if case["perp_neg"] else "sdi_published"]()
    if case["method"] == "dsd":
        return METHODS["dsd" if case["perp_neg"] else "dsd_published"]()
    return METHODS[case["method"]]()


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Return the next draws from N(0, I) are those in the list, then waves; uniform ones are UNIFORM."""
    draws: list[Tensor] = []
    count = iter(range(1, 100))

    def gaussian(like: Tensor, generator: torch.Generator | None) -> Tensor:
        i = next(count)
        return draws.pop(0) if draws else 1.1 * wave(0.8 + 0.37 * i, 0.5 * i)

    def uniform(*_: Any, **__: Any) -> Tensor:
        return torch.full((1,), UNIFORM, dtype=torch.float64)

    monkeypatch.setattr("splatdistill.guidance.noise.gaussian_like", gaussian)
    monkeypatch.setattr("splatdistill.guidance.query.gaussian_like", gaussian)
    monkeypatch.setattr(torch, "rand", uniform)
    return draws


def agree(found: Tensor, expected: list[float]) -> None:
    wanted = torch.tensor(expected, dtype=torch.float64).view(1, *SHAPE)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def name_of(case: dict[str, Any]) -> str:
    perp_neg = "-perp_neg" if case["perp_neg"] else ""
    return f"{case['method']}-{case['prediction']}{perp_neg}-g{case.get('guidance', '')}-t{case['t']}"


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_the_authors_code_finds_the_same(case: dict[str, Any], drawn: list[Tensor]) -> None:
    prior, method, t = (
        StandIn(Z[0], prediction_type=case["prediction"]),
        method_of(case),
        torch.tensor([case["t"]]),
    )
    cond = branches(case, case.get("guidance", method.guidance))
    source = Source(ORIGIN, branches(case, case["guidance"], SOURCE)) if method.edits else None
    if "gradient" in case:
        drawn.append(EPS)
    state = PathStart(START[0]) if case["method"] == "dsd" else None
    step = distill(prior, Z, t, cond, method, source=source, state=state)
    if "gradient" in case:
        agree(step.gradient, case["gradient"])
    else:
        agree(step.target, case["target"])
    if "z_t" in case:
        agree(step.z_t, case["z_t"])


@pytest.mark.parametrize("case", [case for case in CASES if "kappa" in case], ids=name_of)
def test_kappa_is_the_noise_that_the_authors_inversion_finds(
    case: dict[str, Any], drawn: list[Tensor]
) -> None:
    prior, method = StandIn(Z[0], prediction_type=case["prediction"]), method_of(case)
    assert isinstance(method, SDI)
    cond = branches(case, method.guidance)
    kappa, _ = ddim_inversion(prior, Z, torch.tensor([case["t"]]), cond, method.inversion)
    agree(kappa, case["kappa"])


def test_the_papers_own_form_is_another_one(drawn: list[Tensor]) -> None:
    case = CASES[1]
    paper = SDI(inversion=Inversion(guidance=-6.5))
    step = distill(StandIn(Z[0]), Z, torch.tensor([case["t"]]), branches(case, 8.5), paper)
    assert (step.target.flatten() - torch.tensor(case["target"])).abs().max() > 1e-2
