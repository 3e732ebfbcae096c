"""The arithmetic of a diffusion step in plain torch: coefficients, guidance, DDIM moves, residuals.

Notation: x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps; m the guided network output; x0_hat and
eps_hat what it says of x_0 and eps. Storage may be float16 or bfloat16; arithmetic is float32, or float64 for
float64 storage.
"""

import torch
from torch import Tensor

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample", "flow")


def prediction_coefficients(alpha_bar_t: Tensor, prediction_type: str) -> Tensor:
    """Return (x0_x, x0_m, eps_x, eps_m): x0_hat = x0_x x_t + x0_m m and eps_hat = eps_x x_t + eps_m m.

    alpha_bar_t: [B], computed in float64. Returns [B, 4] float32 on its device.
    "flow" is a rectified flow (2209.03003), x_s = (1 - s) x_0 + s eps and m = eps - x_0, seen by the
    variance-preserving x_t = x_s / sqrt((1 - s)^2 + s^2), so s = sqrt(1 - ab) / (sqrt(ab) + sqrt(1 - ab)).
    Not finite where the quantity is undefined: "epsilon" at alpha_bar 0, "sample" at alpha_bar 1.
    Raises ValueError for an unknown prediction type.
    """
    alpha_bar = alpha_bar_t.double()
    a, s = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    one, zero = torch.ones_like(a), torch.zeros_like(a)
    if prediction_type == "epsilon":
        columns = (1 / a, -s / a, zero, one)
    elif prediction_type == "v_prediction":  # m = a eps - s x_0 (2202.00512)
        columns = (a, -s, s, a)
    elif prediction_type == "sample":
        columns = (zero, one, 1 / s, -a / s)
    elif prediction_type == "flow":
        columns = (1 / (a + s), -s / (a + s), 1 / (a + s), a / (a + s))
    else:
        raise ValueError(f"unknown prediction type {prediction_type!r}; expected one of {PREDICTION_TYPES}")
    return torch.stack(columns, dim=-1).float()  # [B, 4]


def ddim_coefficients(
    alpha_bar_t: Tensor, alpha_bar_next: Tensor, prediction_type: str, eta: float = 0.0
) -> Tensor:
    """Return the coefficients of `ddim_step` from noise level t to a lower or a higher one.

    alpha_bar_t, alpha_bar_next: [B]. Returns [B, 7] float32: the four of `prediction_coefficients`, then
    (next_x0, next_eps, next_noise). Source: DDIM (2010.02502), eq. 12 and, for the noise that eta adds on the
    way down, eq. 16; moves to more noise (inversion) add none.
    Raises ValueError for an unknown prediction type.
    """
    now, then = alpha_bar_t.double(), alpha_bar_next.double()
    variance = eta**2 * (1 - then) / (1 - now) * (1 - now / then)
    variance = torch.where(then > now, variance, torch.zeros_like(variance))
    moves = (then.sqrt(), (1 - then - variance).clamp(min=0).sqrt(), variance.sqrt())
    return torch.cat(
        [prediction_coefficients(now, prediction_type), torch.stack(moves, dim=-1).float()], dim=-1
    )  # [B, 7]


def recover_coefficients(alpha_bar_t: Tensor, alpha_bar_next: Tensor) -> Tensor:
    """Return the coefficients of `recover_noise` for x_t at noise level t, remapped to another level.

    alpha_bar_t, alpha_bar_next: [B]. Returns [B, 4] float32: eps = c_0 x_t + c_1 x_0 and
    x_next = c_2 x_0 + c_3 eps. Not finite at alpha_bar_t 1, where x_t holds no noise.
    """
    now, then = alpha_bar_t.double(), alpha_bar_next.double()
    s = (1 - now).sqrt()
    return torch.stack((1 / s, -now.sqrt() / s, then.sqrt(), (1 - then).sqrt()), dim=-1).float()  # [B, 4]


def guided_output(outputs: Tensor, weights: Tensor, perp_neg: bool = False) -> Tensor:
    """Combine the guidance branches: sum_r weights[r] outputs[r], or perp-neg (2304.04968).

    outputs: [R, B, C, h, w]; weights: [R, B]; returns [B, C, h, w]. CFG is outputs [null, text] with weights
    [1 - g, g]. Perp-neg takes branches [null, positive, negative...] and ignores weights[0]: with
    d_r = outputs[r] - outputs[0] and products over a whole sample,
    outputs[0] + w_1 d_1 + sum_i w_i (d_i - <d_i, d_1> / <d_1, d_1> d_1); a zero d_1 leaves d_i as it is.
    """
    weights = weights.reshape(*weights.shape, *[1] * (outputs.ndim - 2))  # [R, B, 1, 1, 1]
    if not perp_neg:
        return (weights * outputs).sum(0)
    differences = outputs - outputs[0]  # [R, B, C, h, w]
    positive = differences[1]
    dots = (differences * positive).flatten(2).sum(-1).reshape_as(weights)
    ratios = torch.where(dots[1] > 0, dots / dots[1], 0.0)
    negatives = differences[2:] - ratios[2:] * positive
    return outputs[0] + weights[1] * positive + (weights[2:] * negatives).sum(0)


def ddim_step(
    x_t: Tensor,
    outputs: Tensor,
    weights: Tensor,
    coefficients: Tensor,
    noise: Tensor | None = None,
    perp_neg: bool = False,
) -> Tensor:
    """Guide, convert and move to the next noise level; see `splatdistill.ops.ddim_step`."""
    check(x_t, coefficients, 7, outputs, weights, noise, perp_neg)
    x, m = _compute(x_t), guided_output(_compute(outputs), weights, perp_neg)
    x0_x, x0_m, eps_x, eps_m, next_x0, next_eps, next_noise = columns(coefficients, x)
    x0_hat = x0_x * x + x0_m * m
    eps_hat = eps_x * x + eps_m * m
    x_next = next_x0 * x0_hat + next_eps * eps_hat
    if noise is not None:
        x_next = x_next + next_noise * _compute(noise)
    return x_next.to(x_t.dtype)


def noise_residual(
    x_t: Tensor,
    outputs: Tensor,
    weights: Tensor,
    coefficients: Tensor,
    noise: Tensor,
    perp_neg: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the weighted residual, x0_hat and the norms; see `splatdistill.ops.noise_residual`."""
    check(x_t, coefficients, 5, outputs, weights, noise, perp_neg)
    x, m = _compute(x_t), guided_output(_compute(outputs), weights, perp_neg)
    x0_x, x0_m, eps_x, eps_m, weight = columns(coefficients, x)
    gradient = weight * (eps_x * x + eps_m * m - _compute(noise))
    norms = torch.linalg.vector_norm(gradient.flatten(1), dim=1).float()  # [B]
    return gradient.to(x_t.dtype), (x0_x * x + x0_m * m).to(x_t.dtype), norms


def recover_noise(x_0: Tensor, x_t: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """Return the noise between x_0 and x_t, and x_0 noised anew; see `splatdistill.ops.recover_noise`."""
    check(x_t, coefficients, 4, noise=x_0)
    eps_xt, eps_x0, next_x0, next_eps = columns(coefficients, _compute(x_t))
    eps = eps_xt * _compute(x_t) + eps_x0 * _compute(x_0)
    return eps.to(x_t.dtype), (next_x0 * _compute(x_0) + next_eps * eps).to(x_t.dtype)


def columns(coefficients: Tensor, like: Tensor) -> list[Tensor]:
    """Split coefficients [B, n] into n tensors that broadcast over the samples of `like` [B, ...]."""
    return list(
        coefficients.reshape(len(coefficients), -1, *[1] * (like.ndim - 1)).unbind(1)
    )  # n x [B, 1, 1, 1]


def check(
    x_t: Tensor,
    coefficients: Tensor,
    count: int,
    outputs: Tensor | None = None,
    weights: Tensor | None = None,
    noise: Tensor | None = None,
    perp_neg: bool = False,
) -> None:
    """Raise ValueError for inconsistent shapes or dtypes (the native kernels check the same)."""
    samples = len(x_t)
    if coefficients.shape != (samples, count):
        raise ValueError(f"coefficients must be [{samples}, {count}], got {list(coefficients.shape)}")
    if noise is not None and (noise.shape != x_t.shape or noise.dtype != x_t.dtype):
        raise ValueError(
            f"expected a tensor like x_t, {list(x_t.shape)}, got {list(noise.shape)} {noise.dtype}"
        )
    if outputs is None or weights is None:
        return
    if outputs.shape[1:] != x_t.shape or outputs.dtype != x_t.dtype or len(outputs) < (2 if perp_neg else 1):
        raise ValueError(
            f"outputs must be [R, ...x_t], x_t {list(x_t.shape)} {x_t.dtype}, R at least 1 (perp-neg: 2), "
            f"got {list(outputs.shape)} {outputs.dtype}"
        )
    if weights.shape != outputs.shape[:2]:
        raise ValueError(f"weights must be {list(outputs.shape[:2])}, got {list(weights.shape)}")


def _compute(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
