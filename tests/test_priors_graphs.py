"""Graphed networks give what the network gives."""

import pytest
import torch
from torch import Tensor

from splatdistill.priors.graphs import Graphed


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
