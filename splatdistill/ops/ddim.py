"""Fused diffusion steps: guidance, prediction conversion and the DDIM move in one pass over memory.

Each function is a torch custom op (autograd, fake tensors, torch.compile) that runs the native kernel for the
tensors' device. float64, and devices without a native kernel, run the reference.
"""

import warnings
from types import ModuleType

import torch
from torch import Tensor

from ..reference import ddim as reference
from ..reference.ddim import columns, ddim_coefficients, prediction_coefficients, recover_coefficients
from . import native

__all__ = [
    "ddim_coefficients",
    "ddim_step",
    "noise_residual",
    "prediction_coefficients",
    "recover_coefficients",
    "recover_noise",
]


def ddim_step(
    x_t: Tensor,
    outputs: Tensor,
    weights: Tensor,
    coefficients: Tensor,
    noise: Tensor | None = None,
    perp_neg: bool = False,
) -> Tensor:
    """Combine the guidance branches, convert the prediction and move x_t to the next noise level.

    x_t: [B, C, h, w] in float32, float16 or bfloat16; outputs: [R, B, C, h, w], its predictions, R at
    most 16; weights: [R, B] float32; coefficients: [B, 7] float32 from `ddim_coefficients`, one row a sample;
    noise: [B, C, h, w], or None to add none. Returns x_next [B, C, h, w]. With perp_neg the branches are
    [null, positive, negative...]. Differentiable in x_t, noise and (without perp_neg) outputs.
    Raises ValueError where shapes, dtypes or devices do not belong together.
    Source: DDIM (2010.02502) eq. 12; perp-neg (2304.04968).
    """
    return _ddim_step(x_t, outputs, weights, coefficients, noise, perp_neg)


def noise_residual(
    x_t: Tensor,
    outputs: Tensor,
    weights: Tensor,
    coefficients: Tensor,
    noise: Tensor,
    perp_neg: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the distillation gradient w (eps_hat - noise), the target x0_hat and the gradient's norms.

    x_t, outputs, weights, noise as in `ddim_step`; coefficients: [B, 5] float32, the four of
    `prediction_coefficients` and w. Returns (gradient [B, C, h, w], x0_hat [B, C, h, w], norms [B] float32,
    the Euclidean norm of each sample's gradient). Has no derivative: the network is frozen.
    Raises ValueError where shapes, dtypes or devices do not belong together.
    """
    return _noise_residual(x_t, outputs, weights, coefficients, noise, perp_neg)


def recover_noise(x_0: Tensor, x_t: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """Return the noise that leads from x_0 to x_t, and x_0 noised with it at another level.

    x_0, x_t: [B, C, h, w]; coefficients: [B, 4] float32 from `recover_coefficients`. Returns (eps, x_next),
    both [B, C, h, w]: eps = (x_t - sqrt(ab_t) x_0) / sqrt(1 - ab_t) and
    x_next = sqrt(ab_next) x_0 + sqrt(1 - ab_next) eps.
    Differentiable in x_0 and x_t. Raises ValueError where shapes, dtypes or devices do not belong together.
    Source: SDI (2405.15891), Algorithm 2.
    """
    return _recover_noise(x_0, x_t, coefficients)


def _kernels(x_t: Tensor) -> ModuleType | None:
    """Return the extension where it can work on x_t."""
    if native._C is None or x_t.dtype == torch.float64 or not (x_t.is_cpu or x_t.is_cuda):
        return None
    if x_t.is_cuda and not native._C.has_cuda:
        warnings.warn("splatdistill was built without CUDA kernels; the reference runs instead", stacklevel=4)
        return None
    return native._C


def _resources(x_t: Tensor) -> tuple[int, int]:
    """Return the CUDA stream's handle and the number of threads that a kernel for x_t may use."""
    stream = torch.cuda.current_stream(x_t.device).cuda_stream if x_t.is_cuda else 0
    return stream, torch.get_num_threads()


def _empty(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op("splatdistill::ddim_step", mutates_args=())
def _ddim_step(
    x_t: Tensor, outputs: Tensor, weights: Tensor, coefficients: Tensor, noise: Tensor | None, perp_neg: bool
) -> Tensor:
    kernels = _kernels(x_t)
    if kernels is None:
        return reference.ddim_step(x_t, outputs, weights, coefficients, noise, perp_neg)
    if noise is not None:
        noise = noise.contiguous()
    inputs = [tensor.contiguous() for tensor in (x_t, outputs, weights, coefficients)]
    x_next = _empty(x_t)
    kernels.ddim_step(*inputs, noise, perp_neg, x_next, *_resources(x_t))
    return x_next


@_ddim_step.register_fake
def _(x_t, outputs, weights, coefficients, noise, perp_neg):
    return _empty(x_t)


def _ddim_step_setup(ctx, inputs, output):
    x_t, _, weights, coefficients, noise, perp_neg = inputs
    ctx.save_for_backward(weights, coefficients)
    ctx.perp_neg, ctx.noisy, ctx.dtype = perp_neg, noise is not None, x_t.dtype


def _ddim_step_backward(ctx, grad):
    weights, coefficients = ctx.saved_tensors
    if ctx.perp_neg and ctx.needs_input_grad[1]:
        raise NotImplementedError("ddim_step: perp_neg has no derivative with respect to outputs")
    x0_x, x0_m, eps_x, eps_m, next_x0, next_eps, next_noise = columns(coefficients, grad)
    grad_x_t = grad_outputs = grad_noise = None
    if ctx.needs_input_grad[0]:
        grad_x_t = ((next_x0 * x0_x + next_eps * eps_x) * grad).to(ctx.dtype)
    if ctx.needs_input_grad[1]:
        branches = weights.reshape(*weights.shape, *[1] * (grad.ndim - 1))  # [R, B, 1, 1, 1]
        grad_outputs = (branches * ((next_x0 * x0_m + next_eps * eps_m) * grad)).to(ctx.dtype)
    if ctx.noisy and ctx.needs_input_grad[4]:
        grad_noise = (next_noise * grad).to(ctx.dtype)
    return grad_x_t, grad_outputs, None, None, grad_noise, None


_ddim_step.register_autograd(_ddim_step_backward, setup_context=_ddim_step_setup)


@torch.library.custom_op("splatdistill::noise_residual", mutates_args=())
def _noise_residual(
    x_t: Tensor, outputs: Tensor, weights: Tensor, coefficients: Tensor, noise: Tensor, perp_neg: bool
) -> tuple[Tensor, Tensor, Tensor]:
    kernels = _kernels(x_t)
    if kernels is None:
        return reference.noise_residual(x_t, outputs, weights, coefficients, noise, perp_neg)
    inputs = [tensor.contiguous() for tensor in (x_t, outputs, weights, coefficients, noise)]
    results = _empty(x_t), _empty(x_t), x_t.new_zeros(x_t.shape[0], dtype=torch.float32)
    kernels.noise_residual(*inputs, perp_neg, *results, *_resources(x_t))
    return results


@_noise_residual.register_fake
def _(x_t, outputs, weights, coefficients, noise, perp_neg):
    return _empty(x_t), _empty(x_t), x_t.new_empty(x_t.shape[0], dtype=torch.float32)


@torch.library.custom_op("splatdistill::recover_noise", mutates_args=())
def _recover_noise(x_0: Tensor, x_t: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    kernels = _kernels(x_t)
    if kernels is None:
        return reference.recover_noise(x_0, x_t, coefficients)
    inputs = [tensor.contiguous() for tensor in (x_0, x_t, coefficients)]
    results = _empty(x_t), _empty(x_t)
    kernels.recover_noise(*inputs, *results, *_resources(x_t))
    return results


@_recover_noise.register_fake
def _(x_0, x_t, coefficients):
    return _empty(x_t), _empty(x_t)


def _recover_noise_setup(ctx, inputs, output):
    ctx.save_for_backward(inputs[2])
    ctx.dtype = inputs[1].dtype


def _recover_noise_backward(ctx, grad_eps, grad_x_next):
    eps_xt, eps_x0, next_x0, next_eps = columns(ctx.saved_tensors[0], grad_eps)
    total = grad_eps + next_eps * grad_x_next
    return (eps_x0 * total + next_x0 * grad_x_next).to(ctx.dtype), (eps_xt * total).to(ctx.dtype), None


_recover_noise.register_autograd(_recover_noise_backward, setup_context=_recover_noise_setup)
