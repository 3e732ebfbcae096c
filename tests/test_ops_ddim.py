"""The fused diffusion steps against diffusers' schedulers, plain torch, and their reference."""

from typing import Any

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler
from torch import Tensor
from torch.autograd import gradcheck
from torch.library import opcheck

from splatdistill import ops, reference
from splatdistill.ops import native

TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}  # absolute and relative
DTYPES = list(TOLERANCE)
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample", "flow")  # the last by test_priors_base.py
SHAPE = (3, 4, 8, 8)  # B, C, h, w

needs_native = pytest.mark.skipif(not native.available(), reason="needs the native extension")


def scheduler_of(kind, prediction_type: str):
    """Return diffusers' scheduler of this kind with 20 steps, and the distance between two of them."""
    settings = dict(beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False)
    scheduler = kind(prediction_type=prediction_type, **settings)
    scheduler.set_timesteps(20)
    return scheduler, scheduler.config.num_train_timesteps // 20


def normal(*shape: int, seed: int = 0, dtype=torch.float32, device="cpu") -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def alpha_bars(seed: int = 1, count: int = SHAPE[0]) -> Tensor:
    return 0.05 + 0.9 * torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def noised(x_0: Tensor, eps: Tensor, bars: Tensor) -> Tensor:
    bars = bars.view(-1, 1, 1, 1)
    return (bars.sqrt() * x_0 + (1 - bars).sqrt() * eps).float()


def step_arguments(
    dtype=torch.float32, device="cpu", shape=SHAPE, branches=3, noisy=True, perp_neg=False
) -> dict[str, Any]:
    count = shape[0]
    return dict(
        x_t=normal(*shape, seed=2, dtype=dtype, device=device),
        outputs=normal(branches, *shape, seed=3, dtype=dtype, device=device),
        weights=normal(branches, count, seed=4, device=device),
        coefficients=ops.ddim_coefficients(alpha_bars(5, count), alpha_bars(6, count), "epsilon", 0.5).to(
            device
        ),
        noise=normal(*shape, seed=7, dtype=dtype, device=device) if noisy else None,
        perp_neg=perp_neg,
    )


def residual_arguments(**settings) -> dict[str, Any]:
    arguments = step_arguments(**settings)
    count, device = len(arguments["x_t"]), arguments["x_t"].device
    converted = ops.prediction_coefficients(alpha_bars(5, count), "v_prediction")
    weight = 0.5 + alpha_bars(8, count).float()
    return arguments | {"coefficients": torch.cat([converted, weight[:, None]], 1).to(device)}


def recover_arguments(dtype=torch.float32, device="cpu", shape=SHAPE) -> dict[str, Any]:
    return dict(
        x_0=normal(*shape, seed=9, dtype=dtype, device=device),
        x_t=normal(*shape, seed=10, dtype=dtype, device=device),
        coefficients=ops.recover_coefficients(alpha_bars(5, shape[0]), alpha_bars(6, shape[0])).to(device),
    )


def assert_close(actual, expected, tolerance: float) -> None:
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


def results(module, calls) -> list:
    return [getattr(module, name)(**arguments) for name, arguments in calls]


def as_tuple(result) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else result


def all_calls(**settings) -> list[tuple]:
    """Every op as (name, arguments), in the variants that take different paths through the kernels."""
    calls = []
    for variant in (dict(branches=1), dict(branches=2, noisy=False), dict(branches=6)):
        calls.append(("ddim_step", step_arguments(**variant, **settings)))
    for perp_neg in (False, True):
        calls.append(("ddim_step", step_arguments(branches=4, perp_neg=perp_neg, **settings)))
        calls.append(("noise_residual", residual_arguments(branches=3, perp_neg=perp_neg, **settings)))
    return calls + [("recover_noise", recover_arguments(**settings))]


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES[:3])
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_step_equals_diffusers_ddim_with_its_own_timestep_for_each_sample(prediction_type, eta):
    scheduler, stride = scheduler_of(DDIMScheduler, prediction_type)
    timesteps = scheduler.timesteps[[3, 10, 18]]
    x_t, m, noise = normal(*SHAPE), normal(*SHAPE, seed=1), normal(*SHAPE, seed=2)
    expected = [
        scheduler.step(m[b, None], int(t), x_t[b, None], eta=eta, variance_noise=noise[b, None])[0]
        for b, t in enumerate(timesteps)
    ]
    bars = scheduler.alphas_cumprod
    coefficients = ops.ddim_coefficients(bars[timesteps], bars[timesteps - stride], prediction_type, eta)
    actual = ops.ddim_step(x_t, m[None], torch.ones(1, 3), coefficients, noise)
    assert_close(actual, torch.cat(expected), 1e-5)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES[:3])
def test_step_to_more_noise_equals_diffusers_inversion(prediction_type):
    scheduler, stride = scheduler_of(DDIMInverseScheduler, prediction_type)
    timesteps = scheduler.timesteps[[2, 9, 17]]
    x_t, m = normal(*SHAPE), normal(*SHAPE, seed=1)
    expected = [scheduler.step(m[b, None], int(t), x_t[b, None])[0] for b, t in enumerate(timesteps)]
    bars = scheduler.alphas_cumprod  # diffusers names the level that is reached
    coefficients = ops.ddim_coefficients(bars[timesteps - stride], bars[timesteps], prediction_type, eta=0.3)
    actual = ops.ddim_step(x_t, m[None], torch.ones(1, 3), coefficients, normal(*SHAPE, seed=2))
    assert_close(actual, torch.cat(expected), 1e-5)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_conversion_recovers_clean_sample_and_noise(prediction_type):
    bars = alpha_bars()
    a, s = (f.view(-1, 1).float() for f in (bars.sqrt(), (1 - bars).sqrt()))
    x_0, eps = normal(3, 16), normal(3, 16, seed=1)
    m = {"epsilon": eps, "v_prediction": a * eps - s * x_0, "sample": x_0, "flow": eps - x_0}[prediction_type]
    x0_x, x0_m, eps_x, eps_m = ops.prediction_coefficients(bars, prediction_type)[..., None].unbind(1)
    x_t = a * x_0 + s * eps
    assert_close(x0_x * x_t + x0_m * m, x_0, 1e-5)
    assert_close(eps_x * x_t + eps_m * m, eps, 1e-5)


def test_unknown_prediction_type_is_named():
    with pytest.raises(ValueError, match="'velocity'"):
        ops.prediction_coefficients(alpha_bars(), "velocity")


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_perfect_prediction_keeps_the_sample_on_its_trajectory(prediction_type):
    now, then = alpha_bars(1), alpha_bars(2)
    x_0, eps = normal(*SHAPE), normal(*SHAPE, seed=1)
    a, s = now.sqrt().view(-1, 1, 1, 1), (1 - now).sqrt().view(-1, 1, 1, 1)
    m = {"epsilon": eps, "v_prediction": a * eps - s * x_0, "sample": x_0, "flow": eps - x_0}[prediction_type]
    coefficients = ops.ddim_coefficients(now, then, prediction_type)
    moved = ops.ddim_step(noised(x_0, eps, now), m.float()[None], torch.ones(1, 3), coefficients)
    assert_close(moved, noised(x_0, eps, then), 1e-5)


def test_cfg_is_the_branches_null_and_text_with_weights_one_minus_g_and_g():
    g = torch.tensor([7.5, 1.0, 0.0])
    arguments = step_arguments(branches=2, noisy=False)
    null, text = arguments["outputs"]
    guided = null + g.view(3, 1, 1, 1) * (text - null)
    alone: dict[str, Any] = arguments | {"outputs": guided[None], "weights": torch.ones(1, 3)}
    arguments["weights"] = torch.stack([1 - g, g])
    assert_close(ops.ddim_step(**arguments), ops.ddim_step(**alone), 1e-5)


def plain_perp_neg(outputs: Tensor, weights: Tensor) -> Tensor:
    """Equation of 2304.04968, one sample and one negative at a time."""
    guided = []
    for b in range(outputs.shape[1]):
        null, positive = outputs[0, b], outputs[1, b] - outputs[0, b]
        total = null + weights[1, b] * positive
        for i in range(2, len(outputs)):
            negative = outputs[i, b] - null
            along = (negative * positive).sum() / positive.square().sum()
            total = total + weights[i, b] * (negative - along * positive)
        guided.append(total)
    return torch.stack(guided)


@pytest.mark.parametrize("branches", [2, 3, 4, 6])
def test_perp_neg_equals_the_plain_equation(branches):
    arguments = step_arguments(branches=branches, perp_neg=True)
    guided = plain_perp_neg(arguments["outputs"], arguments["weights"])
    alone = arguments | {"outputs": guided[None], "weights": torch.ones(1, 3), "perp_neg": False}
    assert_close(ops.ddim_step(**arguments), ops.ddim_step(**alone), 1e-5)


def test_perp_neg_ignores_the_first_weight_and_survives_a_zero_positive():
    arguments = step_arguments(branches=3, perp_neg=True)
    arguments["outputs"][1, 0] = arguments["outputs"][0, 0]
    result = ops.ddim_step(**arguments)
    null, _, negative = arguments["outputs"][:, 0]
    whole = null + arguments["weights"][2, 0] * (negative - null)
    alone = arguments | {"outputs": whole.expand(1, *SHAPE), "weights": torch.ones(1, 3), "perp_neg": False}
    assert_close(result[0], ops.ddim_step(**alone)[0], 1e-5)
    arguments["weights"][0] = 99.0
    assert torch.equal(ops.ddim_step(**arguments), result)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [SHAPE, (2, 3, 5, 7), (1, 4, 33, 1), (5, 1)])
def test_native_equals_reference(dtype, shape):
    for name, arguments in all_calls(dtype=dtype, shape=shape):
        actual, expected = getattr(ops, name)(**arguments), getattr(reference, name)(**arguments)
        assert_close(actual, expected, TOLERANCE[dtype])


@needs_native
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_storage_rounds_as_torch_does(dtype):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).view(1, -1)
    wide = normal(1, 2**16, seed=3) * torch.logspace(-9, 6, 2**16)
    identity = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    kept, _ = ops.recover_noise(torch.zeros_like(every), every, identity)
    torch.testing.assert_close(kept, every, rtol=0, atol=0, equal_nan=True)
    scaled = torch.tensor([[1.0 / 3.0, 0.0, 0.0, 0.0]])
    third, _ = ops.recover_noise(torch.zeros_like(every), wide.to(dtype), scaled)
    assert torch.equal(third, (wide.to(dtype).float() * scaled[0, 0]).to(dtype))


def test_residual_is_weighted_noise_error_with_target_and_norms():
    arguments = residual_arguments(branches=2)
    x_t, m = arguments["x_t"], reference.guided_output(arguments["outputs"], arguments["weights"])
    gradient, x0_hat, norms = ops.noise_residual(**arguments)
    x0_x, x0_m, eps_x, eps_m, w = arguments["coefficients"].view(3, 5, 1, 1, 1).unbind(1)
    assert_close(gradient, w * (eps_x * x_t + eps_m * m - arguments["noise"]), 1e-5)
    assert_close(x0_hat, x0_x * x_t + x0_m * m, 1e-5)
    assert_close(norms, gradient.flatten(1).norm(dim=1), 1e-5)


def test_recovered_noise_rebuilds_the_sample_and_moves_it():
    now, then = alpha_bars(1), alpha_bars(2)
    x_0, eps = normal(*SHAPE), normal(*SHAPE, seed=1)
    x_t, x_next = noised(x_0, eps, now), noised(x_0, eps, then)
    actual = ops.recover_noise(x_0, x_t, ops.recover_coefficients(now, then))
    assert_close(actual, (eps, x_next), 1e-5)


@needs_native
def test_results_do_not_depend_on_the_number_of_threads():
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(results(ops, all_calls(shape=(3, 4, 64, 64))))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert_close(other, found[0], 0)


@needs_native
def test_tensors_read_by_the_plain_dlpack_protocol_give_the_same_results():
    calls = all_calls()
    fast = results(ops, calls)
    native._C.set_exchange(torch.Tensor, None)
    try:
        slow = results(ops, calls)
    finally:
        native._C.set_exchange(torch.Tensor, getattr(torch.Tensor, "__dlpack_c_exchange_api__", None))
    assert_close(slow, fast, 0)


def test_reference_takes_over_without_the_extension(monkeypatch):
    calls = all_calls()
    expected = results(reference, calls)
    monkeypatch.setattr(native, "_C", None)
    assert not native.available() and native.kernels() is None
    actual = results(ops, calls)
    assert_close(actual, expected, 0)


def test_strided_inputs_give_the_result_of_their_copies():
    for name, arguments in all_calls():
        strided = {k: v.mT.contiguous().mT if isinstance(v, Tensor) else v for k, v in arguments.items()}
        assert_close(getattr(ops, name)(**strided), getattr(ops, name)(**arguments), 0)


@pytest.mark.parametrize("shape", [(0, 4, 8, 8), (2, 4, 0, 8)])
def test_empty_batch_gives_an_empty_result(shape):
    for result in results(ops, all_calls(shape=shape)):
        assert as_tuple(result)[0].shape == shape


@pytest.mark.parametrize("extension", [pytest.param(True, marks=needs_native), False])
def test_arguments_that_do_not_fit_are_refused(extension, monkeypatch):
    if not extension:
        monkeypatch.setattr(native, "_C", None)
    good = step_arguments()
    bad = [
        {"outputs": good["outputs"][:, :2]},
        {"outputs": good["outputs"].half()},
        {"outputs": good["outputs"][:0], "weights": good["weights"][:0]},
        {"outputs": good["outputs"][:1], "weights": good["weights"][:1], "perp_neg": True},
        {"weights": good["weights"][:2]},
        {"coefficients": good["coefficients"][:, :5]},
        {"coefficients": good["coefficients"][:2]},
        {"noise": good["noise"][..., :4]},
        {"noise": good["noise"].bfloat16()},
    ]
    for change in bad:
        with pytest.raises(ValueError):
            ops.ddim_step(**good | change)
    with pytest.raises(ValueError):
        ops.recover_noise(**recover_arguments() | {"x_0": normal(1)})


def test_ops_pass_opcheck():
    for name, arguments in all_calls(shape=(2, 3, 4, 4)):
        opcheck(getattr(torch.ops.splatdistill, name).default, tuple(arguments.values()))
    step = step_arguments(shape=(2, 3, 4, 4))
    recover = recover_arguments(shape=(2, 3, 4, 4))
    for leaf in (step["x_t"], step["outputs"], step["noise"], recover["x_0"], recover["x_t"]):
        leaf.requires_grad_()
    opcheck(torch.ops.splatdistill.ddim_step.default, tuple(step.values()))
    opcheck(torch.ops.splatdistill.recover_noise.default, tuple(recover.values()))


def test_gradients_pass_gradcheck_in_float64():
    step, recover = step_arguments(shape=(2, 1, 2, 2)), recover_arguments(shape=(2, 1, 2, 2))
    inputs = [step[key].double().requires_grad_() for key in ("x_t", "outputs", "noise")]
    weights, coefficients = step["weights"], step["coefficients"].double()
    assert gradcheck(
        lambda x_t, outputs, noise: ops.ddim_step(x_t, outputs, weights, coefficients, noise), inputs
    )
    inputs = [recover[key].double().requires_grad_() for key in ("x_0", "x_t")]
    assert gradcheck(lambda x_0, x_t: ops.recover_noise(x_0, x_t, recover["coefficients"].double()), inputs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_equal_those_of_the_reference(dtype):
    for name, make in (("ddim_step", step_arguments), ("recover_noise", recover_arguments)):
        gradients = []
        for module in (ops, reference):
            arguments = make(dtype=dtype)
            keys = [key for key in ("x_t", "x_0", "outputs", "noise") if key in arguments]
            leaves = [arguments[key].requires_grad_() for key in keys]
            found = as_tuple(getattr(module, name)(**arguments))
            cotangents = [normal(*r.shape, seed=20 + i, dtype=dtype) for i, r in enumerate(found)]
            gradients.append(torch.autograd.grad(found, leaves, cotangents))
        assert_close(gradients[0], gradients[1], TOLERANCE[dtype])


def test_perp_neg_refuses_a_derivative_of_the_network():
    arguments = step_arguments(perp_neg=True)
    arguments["outputs"].requires_grad_()
    with pytest.raises(NotImplementedError, match="perp_neg"):
        ops.ddim_step(**arguments).sum().backward()


def test_call_is_traced_under_a_fake_mode():
    arguments = step_arguments()
    with torch._subclasses.FakeTensorMode() as mode:
        fake: Any = {k: mode.from_tensor(v) if isinstance(v, Tensor) else v for k, v in arguments.items()}
        assert ops.ddim_step(**fake).shape == SHAPE


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [SHAPE, (2, 3, 5, 7), (2, 4, 64, 64)])
def test_cuda_equals_its_cpu_twin(dtype, shape):
    on_cuda = all_calls(dtype=dtype, shape=shape, device="cuda")
    for (name, here), (_, there) in zip(all_calls(dtype=dtype, shape=shape), on_cuda):
        expected, actual = getattr(ops, name)(**here), getattr(ops, name)(**there)
        assert_close(tuple(part.cpu() for part in as_tuple(actual)), as_tuple(expected), TOLERANCE[dtype])


@pytest.mark.gpu
def test_cuda_repeats_bit_for_bit_and_follows_the_current_stream():
    calls = all_calls(device="cuda", shape=(2, 4, 64, 64))
    first = results(ops, calls)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        again = results(ops, calls)
    side.synchronize()
    assert_close(again, first, 0)


@pytest.mark.gpu
@pytest.mark.skipif(not native.cuda_available(), reason="needs the CUDA kernels")
def test_cuda_calls_are_captured_in_a_graph():
    calls = all_calls(device="cuda")
    results(ops, calls)  # first calls load the kernels
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = results(ops, calls)
    for _, arguments in calls:
        arguments["x_t"].mul_(0.5)  # the graph reads what the tensors hold when it is replayed
    graph.replay()
    torch.cuda.synchronize()
    expected = results(ops, calls)
    assert_close(captured, expected, 0)


@pytest.mark.gpu
def test_cuda_ops_pass_opcheck():
    for name, arguments in all_calls(device="cuda", shape=(2, 3, 4, 4)):
        opcheck(getattr(torch.ops.splatdistill, name).default, tuple(arguments.values()))
