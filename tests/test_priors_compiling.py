"""Compiled blocks give what the blocks give."""

# diffusers' annotations are narrower than what they take
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false

import copy
import logging
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn

from splatdistill.priors.compiling import can_compile, compile_blocks, normalized


def tiny_unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=4,
        block_out_channels=(32,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        attention_head_dim=2,
        cross_attention_dim=8,
    )
    return unet.eval().requires_grad_(False)


def predict(unet: nn.Module, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    z, text = torch.randn(count, 4, 4, 4, generator=generator), torch.randn(count, 3, 8, generator=generator)
    with torch.no_grad():
        return unet(z, torch.full((count,), 7), encoder_hidden_states=text, return_dict=False)[0]


def same(backend: Any) -> None:
    unet = tiny_unet()
    expected = {count: predict(unet, count) for count in (2, 3)}
    assert compile_blocks(unet, backend=backend) == 9
    for count, value in expected.items():
        torch.testing.assert_close(predict(unet, count), value, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(predict(copy.deepcopy(unet), 2), expected[2], rtol=1e-4, atol=1e-5)


def test_a_group_norm_by_channels_is_the_group_norm() -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(12), torch.randn(12)
    x = (5.0 + torch.randn(2, 12, 3, 5)).to(memory_format=torch.channels_last).requires_grad_()
    cotangent = torch.randn_like(x)
    given, expected = normalized(x, 4, weight, bias, 1e-5), F.group_norm(x, 4, weight, bias, 1e-5)
    torch.testing.assert_close(given, expected)
    gradients = [torch.autograd.grad(y, x, cotangent)[0] for y in (given, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_blocks_compiled_for_any_batch_predict_the_same_and_their_copy_is_plain() -> None:
    compiled = []

    def traced(graph, inputs):
        compiled.append(inputs)
        return graph.forward

    same(traced)
    assert 0 < len(compiled) < 9  # once a kind, not once a block or a batch


def test_a_block_that_cannot_be_compiled_runs_as_it_was_and_is_told_once(caplog) -> None:
    def broken(graph, inputs):
        raise RuntimeError("no compiler here")

    with caplog.at_level(logging.WARNING):
        same(broken)
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("splatdistill")]
    assert line.startswith("the teacher runs uncompiled") and "no compiler here" in line


def test_nothing_is_compiled_for_a_cpu() -> None:
    assert not can_compile(torch.device("cpu"))


@pytest.mark.slow
def test_inductor_gives_the_same_predictions() -> None:
    same("inductor")


@pytest.mark.slow
def test_gradients_flow_through_a_compiled_encoder() -> None:
    torch.manual_seed(0)
    vae = (
        AutoencoderKL(block_out_channels=(32,), norm_num_groups=4, sample_size=8).eval().requires_grad_(False)
    )
    x = torch.rand(2, 3, 8, 8, requires_grad=True)
    (expected,) = torch.autograd.grad(vae.encode(x).latent_dist.mode().square().sum(), x)
    assert compile_blocks(vae.encoder) > 0
    (given,) = torch.autograd.grad(vae.encode(x).latent_dist.mode().square().sum(), x)
    torch.testing.assert_close(given, expected, rtol=1e-3, atol=1e-5)
