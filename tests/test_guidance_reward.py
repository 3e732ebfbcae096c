"""Reward weighting of a method by a scorer."""

import pytest
import torch

from splatdistill.guidance.core import distill
from splatdistill.guidance.guide import Guide
from splatdistill.guidance.methods import SDS
from splatdistill.guidance.reward import Reward, RewardConfig, reward_weights
from splatdistill.priors.base import ToyPrior


class Brightness:
    """A scorer that likes the red of a picture."""

    size, scale = 64, 1.0

    def agreement(self, rgb: torch.Tensor, texts: list[str]) -> torch.Tensor:
        assert len(rgb) == len(texts)
        return rgb[:, 0].mean((1, 2))


def test_the_rules() -> None:
    rewards = torch.tensor([[1.0, 5.0], [3.0, 4.0], [2.0, 6.0]])
    best, contrast = (reward_weights(rewards, rule) for rule in ("best", "contrast"))
    assert best.tolist() == [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    torch.testing.assert_close(contrast, torch.tensor([[-0.1, 0.0], [0.9, -0.1], [0.0, 0.9]]))
    torch.testing.assert_close(reward_weights(rewards, "soft"), rewards.softmax(0))


@pytest.mark.parametrize("rule", ["best", "contrast", "soft"])
def test_a_guide_combines_the_evaluations_of_each_view(rule) -> None:
    prior = ToyPrior(torch.rand(3, 2, 2, generator=torch.Generator().manual_seed(1)), 0.5)
    rgb = torch.rand(2, 2, 2, 3, generator=torch.Generator().manual_seed(2))
    reward = Reward(RewardConfig(n=4, rule=rule), Brightness())
    guide = Guide(prior, SDS(guidance=1.0), "text", views="plain", reward=reward)
    out = guide(rgb.requires_grad_(), 0.5, generator=torch.Generator().manual_seed(4))
    assert out.distillation is not None

    generator = torch.Generator().manual_seed(4)
    z = prior.encode(rgb.detach().permute(0, 3, 1, 2))
    t = SDS().timesteps.sample(0.5, 2, 1000, generator)
    cond = guide.conditioning(guide.prompts, _views(rgb))
    several = [distill(prior, z, t, cond, guide.method, generator) for _ in range(4)]
    rewards = torch.stack([prior.decode(one.x0_hat)[:, 0].mean((1, 2)) for one in several])
    weights = reward_weights(rewards, rule)[..., None, None, None]
    expected = (weights * torch.stack([one.gradient for one in several])).sum(0)
    torch.testing.assert_close(out.distillation.gradient, expected)
    best = rewards.argmax(0)
    assert torch.equal(out.distillation.x0_hat[1], several[int(best[1])].x0_hat[1])
    out.loss.backward()
    assert rgb.grad is not None and rgb.grad.abs().sum() > 0


def _views(rgb: torch.Tensor):
    from splatdistill.guidance.core import Views

    return Views(rgb)


def test_one_evaluation_needs_no_scorer() -> None:
    prior = ToyPrior(torch.zeros(3, 2, 2))
    assert Reward.load(RewardConfig(scorer="nothing of the kind"), prior) is None
    with pytest.raises(ValueError, match=r"reward\.n"):
        RewardConfig(n=0)
