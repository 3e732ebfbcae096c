"""Muon: orthogonal updates of the size that it promises."""

import copy

import pytest
import torch

from splatdistill.teaching.muon import Muon, orthogonalize


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 4, 30), (2, 30, 4)])
def test_singular_values_move_near_one(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalize(torch.randn(shape)))
    assert values.min() > 0.3 and values.max() < 1.35


def test_the_scale_of_the_gradient_does_not_matter() -> None:
    torch.manual_seed(1)
    matrices = torch.randn(2, 6, 10)
    torch.testing.assert_close(orthogonalize(matrices), orthogonalize(1024.0 * matrices))


def quadratic(seed: int = 0) -> tuple[torch.nn.Conv2d, torch.Tensor]:
    torch.manual_seed(seed)
    return torch.nn.Conv2d(3, 5, 3, bias=False), torch.randn(4, 3, 6, 6)


def train(model: torch.nn.Module, optimizer: Muon, images: torch.Tensor, steps: int) -> float:
    loss = torch.zeros(())
    for _ in range(steps):
        loss = (model(images) - images.mean(1, keepdim=True)[..., 1:-1, 1:-1]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def test_the_first_update_has_the_promised_size() -> None:
    model, images = quadratic()
    before = model.weight.detach().clone()
    train(model, Muon(model.parameters(), lr=1e-2, weight_decay=0.0), images, 1)
    change = (model.weight - before).square().mean().sqrt().item()
    assert change == pytest.approx(0.2 * 1e-2, rel=0.25)


def test_it_minimizes_a_convolution() -> None:
    model, images = quadratic()
    first = train(copy.deepcopy(model), Muon(model.parameters(), lr=0.0), images, 1)
    assert train(model, Muon(model.parameters(), lr=5e-2), images, 150) < 0.15 * first


def test_saved_state_continues_exactly() -> None:
    model, images = quadratic()
    optimizer = Muon(model.parameters(), lr=1e-2)
    train(model, optimizer, images, 3)
    other = copy.deepcopy(model)
    resumed = Muon(other.parameters(), lr=1e-2)
    resumed.load_state_dict(optimizer.state_dict())
    train(model, optimizer, images, 3)
    train(other, resumed, images, 3)
    torch.testing.assert_close(model.weight, other.weight, rtol=0, atol=0)


def test_parameters_without_gradients_stay() -> None:
    model, unused = torch.nn.Linear(3, 2), torch.nn.Parameter(torch.ones(2, 3))
    model(torch.ones(1, 3)).sum().backward()
    Muon([model.weight, unused], lr=1e-2).step()
    assert torch.equal(unused, torch.ones(2, 3))


def test_closures_are_refused() -> None:
    model, _ = quadratic()
    with pytest.raises(ValueError, match="closure"):
        Muon(model.parameters(), lr=1e-2).step(lambda: 0.0)
