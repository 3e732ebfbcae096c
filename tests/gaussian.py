"""A Gaussian for every text, whose optimal predictions are known: what methods are held against."""

# pyright: reportArgumentType=false

from dataclasses import dataclass, field

import torch
from torch import Tensor

from splatdistill.guidance.core import distill
from splatdistill.guidance.registry import METHODS
from splatdistill.priors.base import ToyPrior, cfg, flow_alphas_cumprod, scaled_linear_alphas_cumprod

SHAPE, VARIANCE, COUNT = (3, 2, 2), 0.5, 3
TEXTS = ("", "text", "target", "faults")
T = torch.tensor([80, 400, 901])
TABLES = {"diffusion": scaled_linear_alphas_cumprod(), "flow": flow_alphas_cumprod()}
KINDS = [("diffusion", "epsilon"), ("diffusion", "v_prediction"), ("diffusion", "sample"), ("flow", "flow")]


def at(values: Tensor) -> Tensor:
    return values.double().view(-1, 1, 1, 1)


def latents(seed: int) -> Tensor:
    return torch.randn(COUNT, *SHAPE, generator=torch.Generator().manual_seed(seed))


@dataclass
class Known:
    """A ToyPrior, and the same predictions written out."""

    kind: tuple[str, str] = KINDS[0]
    prior: ToyPrior = field(init=False)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(7)
        means = {text: torch.randn(SHAPE, generator=generator) for text in TEXTS}
        self.prior = ToyPrior(means, VARIANCE, self.kind[1], alphas_cumprod=TABLES[self.kind[0]])

    @property
    def table(self) -> Tensor:
        return self.prior.alphas_cumprod

    def ab(self, t: Tensor) -> Tensor:
        return at(self.table[t])

    def score(self, x: Tensor, t: Tensor, text: str) -> Tensor:
        """Return the optimal noise prediction for N(mean, variance)."""
        ab, mean = self.ab(t), self.prior.mean[text].double()
        return (1 - ab).sqrt() * (x.double() - ab.sqrt() * mean) / (ab * VARIANCE + 1 - ab)

    def guided(self, x: Tensor, t: Tensor, g: float) -> Tensor:
        null = self.score(x, t, "")
        return null + g * (self.score(x, t, "text") - null)

    def noised(self, z: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        return self.ab(t).sqrt() * z.double() + (1 - self.ab(t)).sqrt() * eps.double()

    def moved(self, x: Tensor, eps: Tensor, now: Tensor, following: Tensor) -> Tensor:
        """Return x after one DDIM step by a noise prediction."""
        clean = (x - (1 - self.ab(now)).sqrt() * eps) / self.ab(now).sqrt()
        return self.noised(clean, following, eps)

    def cond(self, g: float, *others: str):
        hidden = self.prior.embed(["", "text", *others]).unsqueeze(1).expand(-1, COUNT, -1, -1)
        cond = cfg(hidden[0], hidden[1], g)
        return cond if not others else type(cond)(cond.embeddings, g, others=hidden[2:])

    def gradient(self, name: str, z: Tensor, g: float, **more) -> Tensor:
        """Return a method's gradient, of random numbers from seed 4."""
        cond, generator = more.pop("cond", None) or self.cond(g), torch.Generator().manual_seed(4)
        return distill(self.prior, z, T, cond, METHODS[name](), generator, **more).gradient.double()


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-4 * expected.abs().max().item(), rtol=1e-4)
