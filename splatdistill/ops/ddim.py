"""Fused diffusion steps: guidance, prediction conversion and the DDIM move in one pass over memory.

Each function is a torch custom op (autograd, fake tensors, torch.compile) that runs the native kernel for the
tensors' device. float64, and devices without a native kernel, run the reference. Where nothing needs to
observe the call, it goes straight to the kernel: dispatching a custom op costs several times a small step.
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

    x_t: [B, C, h, w] in float32, float16 or bfloat16; outputs: [R, B, C, h, w], the network's predictions, R at
    most 16; weights: [R, B] float32; coefficients: [B, 7] float32 from `ddim_coefficients`, one row a sample;
    noise: [B, C, h, w], or None to add none. Returns x_next [B, C, h, w]. With perp_neg the branches are
    [null, positive, negative...]. Differentiable in x_t, noise and (without perp_neg) outputs.
    Raises ValueError where shapes, dtypes or devices do not belong together.
    Source: DDIM (2010.02502) eq. 12; perp-neg (2304.04968).
    """
    kernels = _direct(x_t, outputs, noise)
    if kernels is not None:
        x_next, threads, stream = torch.empty_like(x_t), torch.get_num_threads(), _stream(x_t)
        if kernels.ddim_step(x_next, x_t, outputs, weights, coefficients, noise, perp_neg, threads, stream):
            return x_next
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
    kernels = _direct(x_t, outputs, noise)
    if kernels is not None:
        gradient, x0_hat = torch.empty_like(x_t), torch.empty_like(x_t)
        norms = torch.empty(len(x_t), device=x_t.device)
        threads, stream = torch.get_num_threads(), _stream(x_t)
        if kernels.noise_residual(
            gradient, x0_hat, norms, x_t, outputs, weights, coefficients, noise, perp_neg, threads, stream
        ):
            return gradient, x0_hat, norms
    return _noise_residual(x_t, outputs, weights, coefficients, noise, perp_neg)


def recover_noise(x_0: Tensor, x_t: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """Return the noise that leads from x_0 to x_t, and x_0 noised with it at another level.

    x_0, x_t: [B, C, h, w]; coefficients: [B, 4] float32 from `recover_coefficients`. Returns (eps, x_next),
    both [B, C, h, w]: eps = (x_t - sqrt(ab_t) x_0) / sqrt(1 - ab_t) and
    x_next = sqrt(ab_next) x_0 + sqrt(1 - ab_next) eps.
    Differentiable in x_0 and x_t. Raises ValueError where shapes, dtypes or devices do not belong together.
    Source: SDI (2405.15891), Algorithm 2.
    """
    kernels = _direct(x_t, x_0, None)
    if kernels is not None:
        eps, x_next = torch.empty_like(x_t), torch.empty_like(x_t)
        if kernels.recover_noise(eps, x_next, x_0, x_t, coefficients, torch.get_num_threads(), _stream(x_t)):
            return eps, x_next
    return _recover_noise(x_0, x_t, coefficients)


def _kernels(x_t: Tensor) -> ModuleType | None:
    """Return the extension where it can work on x_t."""
    if x_t.dtype is _FLOAT64:
        return None
    if x_t.is_cpu:
        return native._C
    if not x_t.is_cuda or native._C is None:
        return None
    if not native._C.has_cuda:
        warnings.warn("splatdistill was built without CUDA kernels; the reference runs instead", stacklevel=4)
        return None
    return native._C


# Bound once: in a call of two microseconds each attribute look-up shows.
_FLOAT64 = torch.float64
_is_compiling = torch.compiler.is_compiling
_is_grad_enabled = torch.is_grad_enabled
_dispatch_modes = torch._C._len_torch_dispatch_stack
_transforms = torch._C._are_functorch_transforms_active


def _direct(x_t: Tensor, other: Tensor, noise: Tensor | None) -> ModuleType | None:
    """Return the extension where neither autograd, a compiler, a transform nor a mode must see the call."""
    if _is_compiling() or type(x_t) is not Tensor or type(other) is not Tensor:
        return None
    if _is_grad_enabled() and (
        x_t.requires_grad or other.requires_grad or (noise is not None and noise.requires_grad)
    ):
        return None
    if _dispatch_modes() or _transforms():
        return None
    return _kernels(x_t)


def _stream(x_t: Tensor) -> int:
    return 0 if x_t.is_cpu else torch.cuda.current_stream(x_t.device).cuda_stream


def _empty(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op("splatdistill::ddim_step", mutates_args=())
def _ddim_step(
    x_t: Tensor, outputs: Tensor, weights: Tensor, coefficients: Tensor, noise: Tensor | None, perp_neg: bool
) -> Tensor:
    kernels = _kernels(x_t)
    if kernels is None:
        return reference.ddim_step(x_t, outputs, weights, coefficients, noise, perp_neg)
    x_next = _empty(x_t)
    inputs = [x_t, outputs, weights, coefficients] + ([] if noise is None else [noise])
    copies = [tensor.contiguous() for tensor in inputs] + ([None] if noise is None else [])
    kernels.ddim_step(x_next, *copies, perp_neg, torch.get_num_threads(), _stream(x_t))
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
    gradient, x0_hat = _empty(x_t), _empty(x_t)
    norms = torch.empty(len(x_t), device=x_t.device)
    inputs = [tensor.contiguous() for tensor in (x_t, outputs, weights, coefficients, noise)]
    kernels.noise_residual(gradient, x0_hat, norms, *inputs, perp_neg, torch.get_num_threads(), _stream(x_t))
    return gradient, x0_hat, norms


@_noise_residual.register_fake
def _(x_t, outputs, weights, coefficients, noise, perp_neg):
    return _empty(x_t), _empty(x_t), x_t.new_empty(x_t.shape[0], dtype=torch.float32)


@torch.library.custom_op("splatdistill::recover_noise", mutates_args=())
def _recover_noise(x_0: Tensor, x_t: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    kernels = _kernels(x_t)
    if kernels is None:
        return reference.recover_noise(x_0, x_t, coefficients)
    eps, x_next = _empty(x_t), _empty(x_t)
    inputs = [tensor.contiguous() for tensor in (x_0, x_t, coefficients)]
    kernels.recover_noise(eps, x_next, *inputs, torch.get_num_threads(), _stream(x_t))
    return eps, x_next


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
