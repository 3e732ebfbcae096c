"""Graphed networks give what the network gives."""

import pytest
import torch
from torch import Tensor

from splatdistill.priors.graphs import Graphed, GraphedGradient


def network(x: Tensor, t: Tensor) -> Tensor:
    return (x * t.view(-1, 1)).softmax(-1) @ x.new_ones(x.shape[1], 3)


def test_without_cuda_the_network_itself_is_called() -> None:
    x, t = torch.randn(2, 4), torch.tensor([1, 2])
    assert torch.equal(Graphed(network)(x, t), network(x, t))


@pytest.mark.gpu
def test_replays_equal_calls_for_all_shapes_in_any_order() -> None:
    graphed, results = Graphed(network), []
    for count in (3, 1, 3, 2, 1, 3):
        x, t = torch.randn(count, 4, device="cuda"), torch.arange(count, device="cuda")
        results.append((graphed(x, t), network(x, t)))
    for replayed, called in results:  # all kept until now: none may live in memory that another overwrote
        torch.testing.assert_close(replayed, called)


@pytest.mark.gpu
def test_replays_follow_the_current_stream() -> None:
    graphed, x, t = Graphed(network), torch.randn(2, 4, device="cuda"), torch.ones(2, device="cuda")
    graphed(x, t)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        doubled = graphed(2 * x, t)
    side.synchronize()
    torch.testing.assert_close(doubled, network(2 * x, t))


def curve(x: Tensor) -> Tensor:
    return (x.sin() @ x.cos().mT).exp()


def test_without_cuda_a_gradient_is_the_networks_own() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    (given,) = torch.autograd.grad(GraphedGradient(curve)(x).sum(), x)
    (expected,) = torch.autograd.grad(curve(x).sum(), x)
    assert torch.equal(given, expected)


@pytest.mark.gpu
def test_replayed_gradients_equal_the_networks_whatever_was_called_between() -> None:
    graphed, calls = GraphedGradient(curve), []
    for count in (3, 2, 3, 3):
        x = torch.randn(count, 4, device="cuda", requires_grad=True)
        calls.append((x, graphed(2 * x)))
    for x, y in calls:  # all called before the first gradient: the activations of the last are there
        torch.testing.assert_close(y, curve(2 * x))
        cotangent = torch.randn_like(y)
        (given,) = torch.autograd.grad(y, x, cotangent)
        (expected,) = torch.autograd.grad(curve(2 * x), x, cotangent)
        torch.testing.assert_close(given, expected)
    with torch.no_grad():
        torch.testing.assert_close(graphed(calls[0][0]), curve(calls[0][0]))
