"""The protocol of priors, guidance branches and their weights, and a toy prior with a closed-form score."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from splatdistill.errors import UserError
from splatdistill.scene.cameras import Cameras

if TYPE_CHECKING:
    from splatdistill.priors.folders import Folder
    from splatdistill.scene.pictures import Reference


@dataclass(frozen=True)
class Conditioning:
    """The guidance branches of a batch and how their outputs combine.

    Args:
        embeddings: [R,B,L,D]; branch 0 is the null (or negative-prompt) branch, branch 1 the text.
        scale: g of eps = eps_null + g (eps_text - eps_null [+ sum_i w_i perp_i]); None where a method is to
            decide.
        negatives: w_i [R-2,B], the weights of perp-neg's negative branches relative to the positive one, on
            the CPU; None for classifier-free guidance.
        extra: [R,B,...], other inputs of the network in each branch, such as cameras; None for none.
        others: [K,B,L,D], further texts that a method reads, see `of_other`; None for none.
    """

    embeddings: Tensor
    scale: float | None = None
    negatives: Tensor | None = None
    extra: Tensor | None = None
    others: Tensor | None = None

    @property
    def perp_neg(self) -> bool:
        """Whether branches from 2 on are negatives, of which the part parallel to the text is removed."""
        return self.negatives is not None

    @property
    def weights(self) -> Tensor:
        """The branches' weights [R,B] float32, as `ops.ddim_step` takes them, on the CPU.

        Asking there which are zero waits for no GPU. Raises ValueError where no scale is set.
        """
        if self.scale is None:
            raise ValueError("conditioning: the guidance scale is not set; see with_guidance")
        count = self.embeddings.shape[1]
        if self.negatives is None:
            return torch.tensor([[1.0 - self.scale], [self.scale]], dtype=torch.float32).repeat(1, count)
        ones = torch.ones(1, count)
        return torch.cat([ones, self.scale * ones, self.scale * self.negatives])

    def select(self, index: Tensor, there: Tensor | None = None) -> Conditioning:
        """Return the conditioning of the samples in `index` [n]; there: the same on the device, if known."""
        here = index.to(self.embeddings.device) if there is None else there
        extra = None if self.extra is None else self.extra[:, here]
        negatives = None if self.negatives is None else self.negatives[:, index.cpu()]
        others = None if self.others is None else self.others[:, here]
        return replace(
            self, embeddings=self.embeddings[:, here], negatives=negatives, extra=extra, others=others
        )

    def with_guidance(self, g: float) -> Conditioning:
        """Return the same branches at scale `g`."""
        return replace(self, scale=g)

    def with_default(self, g: float) -> Conditioning:
        """Return the same branches, at scale `g` where none is set."""
        return self if self.scale is not None else self.with_guidance(g)

    def of_other(self, index: int = 0) -> Conditioning:
        """Return the branches of one of the further texts alone; of the null text where there are none."""
        alone = self.with_guidance(0.0)
        if self.others is None:
            return alone
        return replace(alone, embeddings=torch.cat([self.others[index : index + 1], self.embeddings[1:]]))


def cfg(null: Tensor, text: Tensor, g: float | None = None) -> Conditioning:
    """Return classifier-free guidance (2207.12598) between `null` and `text`, both [B,L,D], at scale `g`."""
    return Conditioning(torch.stack([null, text]), g)


@dataclass(frozen=True)
class Adaptable:
    """A denoiser that may be adapted without changing its prior, such as for VSD's student.

    Args:
        module: modules of its own over the prior's weights; takes peft's `add_adapter`.
        predict: as the prior's, but through this module, with gradient, and of the text's branch: [B,C,h,w].
        maps: the names, or their ends, of the linear maps of attention in the module.
        width: numbers in a token of the text, behind which a further one may tell the network of cameras;
            None where it is told of them already.
    """

    module: nn.Module
    predict: Callable[[Tensor, Tensor, Conditioning], Tensor]
    maps: Sequence[str]
    width: int | None


class Prior(Protocol):
    """A frozen diffusion model: only `encode` carries gradients. Inherit from it to have the defaults.

    alphas_cumprod [T] is float64 on the CPU, latent_shape is (C, h, w), image_size the side in pixels.
    clean_alpha_bar is alpha_bar at the clean end of the scheduler's own trajectory: 1 with
    `set_alpha_to_one`, else alphas_cumprod[0].

    group: views that are denoised together, evenly around the object at one noise level; 1: each alone.
    places_deg: azimuth and elevation of each view of a group, where it knows no others.
    view_words: whether a prompt should name the view.
    needs_picture: whether it reads a picture in place of a text; then `condition_on` comes before the rest.
    reads_picture: whether it reads one beside a text or without any, if `condition_on` gives it one.
    needs_cameras: whether `with_cameras` must be called.
    takes_lora: whether `load` merges the LoRA files of its folder.
    vocabulary: the only words that it knows; None for any.
    remarks: lines for the user on how it takes the picture that it is conditioned on.
    """

    name: str
    device: torch.device
    dtype: torch.dtype
    prediction_type: str
    alphas_cumprod: Tensor
    clean_alpha_bar: float = 1.0
    latent_shape: tuple[int, int, int]
    image_size: int
    group: int = 1
    places_deg: tuple[tuple[float, float], ...] = ()
    view_words: bool = True
    needs_cameras: bool = False
    needs_picture: bool = False
    reads_picture: bool = False
    takes_lora: ClassVar[bool] = False
    vocabulary: frozenset[str] | None = None
    remarks: tuple[str, ...] = ()

    @classmethod
    def reads(cls, folder: Folder) -> bool:
        """Return whether this class can load a folder, from its JSON files."""
        return False

    @classmethod
    def check(cls, folder: Folder) -> None:
        """Raise ValueError where the small files of such a folder show that it cannot be loaded."""

    @classmethod
    def load(cls, folder: Folder, device: torch.device | str, dtype: torch.dtype | None) -> Self:
        """Load a folder that this class reads; any exception becomes one line for the user."""
        raise UserError(f"{cls.__name__} cannot be loaded from a folder")

    def encode(self, rgb: Tensor) -> Tensor:
        """Return the scaled latents [V,C,h,w] of images [V,3,H,W] in [0,1]; differentiable."""
        ...

    def decode(self, z: Tensor) -> Tensor:
        """Return the images [V,3,H,W] in [0,1] of scaled latents [V,C,h,w]."""
        ...

    def embed(self, texts: list[str]) -> Tensor:
        """Return text embeddings [n,L,D]."""
        ...

    def expect(self, texts: Sequence[str]) -> None:
        """Take note of texts that will be embedded, for an encoder that is loaded only to read."""

    def predict(self, z_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Return raw outputs [R,B,C,h,w] at z_t [B,C,h,w], t [B]; zeros for a branch without weight."""
        ...

    def with_cameras(self, cond: Conditioning, cameras: Cameras, background: Tensor) -> Conditioning:
        """Return the conditioning with what this prior reads of the cameras [B] and backgrounds [B,3]."""
        return cond

    def condition_on(self, reference: Reference) -> Self:
        """Return this prior conditioned on a picture; unchanged if it reads none."""
        return self

    def for_run(self, seed: int, models: int) -> Self:
        """Return this prior as a run uses it; the same unless it chooses among `models` of a thing."""
        return self

    def understand(self, text: str) -> tuple[str, list[str]]:
        """Return a text as this prior reads it, and a line where some of it is taken for something else."""
        return text, []

    def compile(self) -> None:
        """Compile its networks where that makes them faster; the first calls then take about a minute.

        Predictions change by rounding alone. Does nothing on a CPU, and for a prior that cannot.
        """

    def alone(self) -> Self:
        """Return this prior for single pictures without cameras; UserError where it has none."""
        if self.group > 1:
            raise UserError("flat pictures have no cameras; give a teacher of single views")
        return self

    def fit(self, text: str, suffixes: Sequence[str] = ("",)) -> str:
        """Return `text`, cut so that all of it is read, and any of the suffixes behind it too."""
        return text

    def adaptable(self) -> Adaptable:
        """Return a copy of the denoiser that may be adapted; UserError where there is none."""
        raise UserError(f"prior '{self.name}' has no UNet that could be adapted, which vsd needs")


def cut_to_fit(text: str, suffixes: Sequence[str], fits: Callable[[str], bool]) -> str:
    """Return the longest start of `text`, in whole words, that fits with every suffix; all of it mostly.

    `fits` tells whether a text is read whole. A first word that is too long by itself is cut within.
    """

    def whole(start: str) -> bool:
        return all(fits(start + suffix) for suffix in suffixes)

    if whole(text):
        return text
    ends = [match.end() for match in re.finditer(r"\S+", text)]
    places = [0, *ends] if ends and whole(text[: ends[0]]) else list(range(len(text)))
    known, broken = 0, len(places)  # the first fits, or nothing does; the second does not
    while broken - known > 1:
        middle = (known + broken) // 2
        known, broken = (middle, broken) if whole(text[: places[middle]]) else (known, middle)
    return text[: places[known]].rstrip(" ,;") if places else text


def alpha_bar_at(prior: Prior, t: Tensor) -> Tensor:
    """Return alpha_bar [B] (float64, CPU) at timesteps t [B]; a negative one is the scheduler's clean end.

    Raises IndexError for a timestep beyond the table.
    """
    t = t.cpu()
    clean = torch.tensor(prior.clean_alpha_bar, dtype=torch.float64)
    return torch.where(t < 0, clean, prior.alphas_cumprod[t.clamp(min=0)])


def run_branches(network: Callable[..., Tensor], z_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
    """Run `network(z [n,C,h,w], t [n], embeddings [n,L,D]) -> [n,C,h,w]` on all branches with weight.

    z_t [B,C,h,w], t [B] -> [R,B,C,h,w], in one batch; a branch whose weight is zero for all samples is not
    evaluated, and its output is zero. If the conditioning has `extra`, that is the fourth argument, [n,...].
    """
    active = (cond.weights != 0).any(dim=1)  # [R]
    if cond.perp_neg:
        active[0] = True  # other branches are relative to the null branch
    rows = active.nonzero().flatten().tolist()
    given = [_joined(part, rows) for part in (cond.embeddings, cond.extra) if part is not None]
    result = network(z_t.repeat(len(rows), 1, 1, 1), t.repeat(len(rows)), *given)
    result = result.view(len(rows), *z_t.shape)
    if len(rows) == len(active):
        return result
    outputs = result.new_zeros(len(active), *z_t.shape)
    for row, output in zip(rows, result, strict=True):
        outputs[row] = output
    return outputs


def text_branch(network: Callable[..., Tensor], z_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
    """Run a network of `run_branches` on the text's branch alone; returns [B,C,h,w], with gradient."""
    return network(z_t, t, *(part[1] for part in (cond.embeddings, cond.extra) if part is not None))


def _joined(part: Tensor, rows: list[int]) -> Tensor:
    """Return the chosen branches of [R,B,...] as one batch; an index by a list would wait for the device."""
    return part.flatten(0, 1) if len(rows) == len(part) else torch.cat([part[row] for row in rows])


def scaled_linear_alphas_cumprod(count: int = 1000, start: float = 0.00085, end: float = 0.012) -> Tensor:
    """Return Stable Diffusion's alpha_bar [count], float64: betas are linear in their square root."""
    betas = torch.linspace(start**0.5, end**0.5, count, dtype=torch.float64) ** 2
    return torch.cumprod(1.0 - betas, dim=0)


def flow_alphas_cumprod(count: int = 1000, noise_scale: float = 1.0) -> Tensor:
    """Return alpha_bar [count], float64, of a rectified flow (2209.03003) at the times s = (t + 1) / count.

    x_s = (1 - s) x_0 + s noise_scale eps, divided by sqrt((1 - s)^2 + (s noise_scale)^2), is x_t with this
    alpha_bar; see `ops.prediction_coefficients`.
    """
    s = torch.arange(1, count + 1, dtype=torch.float64) / count
    return (1.0 - s) ** 2 / ((1.0 - s) ** 2 + (s * noise_scale) ** 2)


class ToyPrior(Prior):
    """A prior of Gaussian data N(mean, variance) per prompt, with the optimal prediction in closed form.

    `mean` is [C,h,w] for every text, or a mapping from text to [C,h,w]; `variance` a number or [C,h,w].
    A text's embedding is its mean, so interpolated embeddings are interpolated means. `encode` averages
    pixels into h x w cells of the first three channels (the others hold their mean), in [-1,1]. Its flow form
    has prediction_type "flow" and alphas_cumprod of `flow_alphas_cumprod`.
    """

    def __init__(
        self,
        mean: Tensor | Mapping[str, Tensor],
        variance: float | Tensor = 1.0,
        prediction_type: str = "epsilon",
        image_size: int | None = None,
        alphas_cumprod: Tensor | None = None,
    ) -> None:
        self.mean = mean
        first = mean if isinstance(mean, Tensor) else next(iter(mean.values()))
        self.name = "toy"
        self.device, self.dtype = first.device, first.dtype
        self.prediction_type = prediction_type
        self.alphas_cumprod = scaled_linear_alphas_cumprod() if alphas_cumprod is None else alphas_cumprod
        self.latent_shape: tuple[int, int, int] = (first.shape[0], first.shape[1], first.shape[2])
        self.image_size = first.shape[2] if image_size is None else image_size
        self.variance = torch.as_tensor(variance, dtype=self.dtype, device=self.device)

    def encode(self, rgb: Tensor) -> Tensor:
        """Return latents [V,C,h,w] of images [V,3,H,W] in [0,1]; differentiable (linear)."""
        channels, height, width = self.latent_shape
        cells = F.adaptive_avg_pool2d(2.0 * rgb - 1.0, (height, width))  # [V, 3, h, w]
        gray = cells.mean(dim=1, keepdim=True).expand(-1, max(channels - 3, 0), -1, -1)
        return torch.cat([cells[:, :channels], gray], dim=1)

    def decode(self, z: Tensor) -> Tensor:
        """Return images [V,3,H,W] in [0,1] whose cells are the first three channels of z [V,C,h,w]."""
        rgb = (z[:, [min(c, z.shape[1] - 1) for c in range(3)]] * 0.5 + 0.5).clamp(0.0, 1.0)
        return F.interpolate(rgb, size=(self.image_size, self.image_size))

    def embed(self, texts: list[str]) -> Tensor:
        """Return embeddings [n,1,C*h*w]: the means of `texts`."""
        means = [self.mean if isinstance(self.mean, Tensor) else self.mean[text] for text in texts]
        return torch.stack(means).flatten(1).unsqueeze(1)

    def predict(self, z_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Return the posterior-mean prediction [R,B,C,h,w] at z_t [B,C,h,w], t [B], in `prediction_type`.

        E[x0 | z_t] = mean + sqrt(ab) var (z_t - sqrt(ab) mean) / (ab var + 1 - ab), and eps from z_t and it.
        """
        return run_branches(self.network, z_t, t, cond)

    def network(self, z_t: Tensor, t: Tensor, embeddings: Tensor) -> Tensor:
        """Return the prediction [n,C,h,w] at z_t [n,C,h,w], t [n] for texts [n,L,D]."""
        alpha_bar = alpha_bar_at(self, t).view(-1, 1, 1, 1)
        signal, sigma = (
            alpha_bar.sqrt().to(z_t),
            (1.0 - alpha_bar).sqrt().to(z_t),
        )  # cast last: 1 - ab cancels
        mean = embeddings.view_as(z_t).to(z_t.dtype)
        surprise = (z_t - signal * mean) / (signal**2 * self.variance + sigma**2)
        x_0 = mean + signal * self.variance * surprise
        eps = sigma * surprise
        predictions = {
            "epsilon": eps,
            "sample": x_0,
            "v_prediction": signal * eps - sigma * x_0,
            "flow": eps - x_0,
        }
        return predictions[self.prediction_type]
