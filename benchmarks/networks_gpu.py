"""The forms of Stable Diffusion 2.1's UNet and encoder on a GPU: which is fastest, and is each right.

Two stages of benchmarks/gpu_check.py. A form is timed at several batches and compared with the same network
in float32, beside the plain one; one that fails costs only itself. Random weights.
"""

from __future__ import annotations

import copy
import logging
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from guidance_gpu import ATTENTION, NORMS, build_prior, first_attention
from torch import Tensor, nn

from splatdistill.priors import compiling
from splatdistill.priors.compiling import compile_blocks
from splatdistill.priors.graphs import Graphed, GraphedGradient

if TYPE_CHECKING:
    from gpu_check import Check

WRONG = 2.0  # a form is wrong if it is so many times as far from float32 as the plain one, or more
ROUNDING = 1e-5  # what float32 itself may differ by, where the plain form is float32 (--dry)
LONGEST = 90.0  # seconds of one form, compilation included


class OutOfTime(BaseException):
    """A form took too long; no Exception, so that no library takes it for a failure of its own."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise OutOfTime in the block after some seconds."""

    def ring(number: int, frame: Any) -> None:
        raise OutOfTime(f"over {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1.0))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


class Complaints(logging.Handler):
    """Collects the warnings of compilation while it is entered."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        self.lines.append(record.getMessage())

    def __enter__(self) -> None:
        compiling.log.addHandler(self)

    def __exit__(self, *error: object) -> None:
        compiling.log.removeHandler(self)


class Forms:
    """What was found of each form, written down at once."""

    def __init__(self, check: Check) -> None:
        self.check, self.forms, self.failed, self.best = check, {}, [], {}

    @property
    def told(self) -> dict[str, Any]:
        """The stage's result so far."""
        return {"forms": self.forms, "best": self.best, "failed": self.failed}

    def take(self, name: str, work: Callable[[], dict[str, Any]], needs: float = 5.0) -> dict[str, Any]:
        """Measure one form if the time suffices; return what was found, empty where it failed."""
        begin, left = time.monotonic(), self.check.end - time.monotonic()
        if left < needs and not self.check.dry:
            self.forms[name] = {"left out": f"{left:.0f} s are left of {needs:.0f}"}
            return {}
        complaints = Complaints()
        try:
            with limited(min(left, LONGEST)), complaints:
                found = work()
        except (Exception, OutOfTime) as error:
            self.failed.append(name)
            found = {"error": f"{type(error).__name__}: {error}"[:600]}
        if complaints.lines:  # it was not compiled, so its times are those of another form
            found = {"error": complaints.lines[0], "instead": found}
        if found.get("wrong") or complaints.lines:
            self.failed.append(name)
        self.forms[name] = found | {"seconds": time.monotonic() - begin}
        self.check.save(self.told)
        print(f"  {name}: {self.forms[name]}"[:400], flush=True)
        return {} if "error" in found else found


@contextmanager
def in_full() -> Iterator[None]:
    """Have convolutions in float32 be that, not TF32."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def distance(value: Tensor, expected: Tensor) -> float:
    """Return the relative distance between two tensors."""
    return float((value.float() - expected.float()).norm() / expected.float().norm().clamp(min=1e-12))


def fastest(found: dict[str, dict[str, Any]], key: str) -> str | None:
    """Return the name of the form that is right and has the least of `key`; None without any."""
    good = {name: form["ms"][key] for name, form in found.items() if form and not form.get("wrong")}
    return min(good, key=lambda name: good[name]) if good else None


def kernels(work: Callable[[], Any], count: int = 25) -> list[dict[str, Any]]:
    """Return the kernels that take longest in a piece of work: name, calls, microseconds."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as told:
        work()
        torch.cuda.synchronize()
    rows = sorted(told.key_averages(), key=lambda row: -row.self_device_time_total)[:count]
    return [{"name": row.key[:90], "calls": row.count, "us": row.self_device_time_total} for row in rows]


def norms(check: Check, blocks: list[nn.Module], run: Callable[[nn.Module], Any]) -> dict[str, Any]:
    """Return milliseconds of some blocks compiled with either class of group norm, and uncompiled."""
    told = {"uncompiled": sum(check.milliseconds(lambda b=block: run(b), 5) for block in blocks)}
    for name, norm in NORMS.items():
        own = [copy.deepcopy(block) for block in blocks]
        for block in own:
            compile_blocks(block, norm, "eager" if check.dry else "inductor")
        told[name] = sum(check.milliseconds(lambda b=block: run(b), 5) for block in own)
    return {"ms": told}


def best_norm(found: dict[str, Any]) -> str:
    """Return the name of the faster class of group norm."""
    return min(NORMS, key=lambda name: found["ms"][name]) if found else next(iter(NORMS))


class UNet:
    """The UNet with inputs at several batches, and its output in float32."""

    def __init__(self, check: Check) -> None:
        self.check, self.prior = check, fresh(check)
        self.batches, self.few = ((2, 3), (3,)) if check.dry else ((2, 4, 8, 16), (4, 16))
        width, generator = self.prior.unet.config.cross_attention_dim, torch.Generator().manual_seed(3)
        self.inputs: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        for n in self.batches:
            z = torch.randn(n, *self.prior.latent_shape, generator=generator)
            t, text = torch.full((n,), 500), torch.randn(n, 77, width, generator=generator)
            self.inputs[n] = (z.to(check.device), t.to(check.device), text.to(check.device))
        exact = copy.copy(self.prior)
        exact.unet, exact.dtype = copy.deepcopy(self.prior.unet).float(), torch.float32
        with torch.no_grad():
            with in_full():
                self.expected = exact.network(*self.inputs[2])
            self.plain = distance(self.prior.network(*self.inputs[2]), self.expected)

    def form(
        self, network: Callable[..., Tensor], attention: str = "default", batches: tuple[int, ...] = ()
    ) -> dict[str, Any]:
        """Time a network at some batches; the seconds before are of its first call, compilation included."""
        inputs, milliseconds = self.inputs, self.check.milliseconds
        with torch.no_grad(), first_attention(attention):
            begin = time.monotonic()
            far = distance(network(*inputs[2]), self.expected)
            prepared = time.monotonic() - begin
            chosen = batches or self.batches
            ms = {f"batch {n}": milliseconds(lambda n=n: network(*inputs[n]), 5) for n in chosen}
        told = {"ms": ms, "prepared_s": prepared, "far_from_float32": far, "plain_is": self.plain}
        return told | {"wrong": not far <= WRONG * self.plain + ROUNDING}

    def kernels(self, attention: str = "default") -> dict[str, Any]:
        """Return the kernels of the largest batch."""
        with torch.no_grad(), first_attention(attention):
            return {"top": kernels(lambda: self.prior.network(*self.inputs[self.batches[-1]]))}

    def norms(self) -> dict[str, Any]:
        """Compare the classes of group norm on one residual block of each of the two largest levels."""
        blocks = [level.resnets[-1] for level in self.prior.unet.down_blocks[:2]]
        with torch.no_grad():
            return norms(self.check, blocks, lambda block: block(*self.block_inputs(block)))

    def block_inputs(self, block: Any) -> tuple[Tensor, Tensor]:
        """Return the features and the time embedding of a residual block on its level of the UNet."""
        widths, count = self.prior.unet.config.block_out_channels, self.batches[-1]
        side = self.prior.latent_shape[1] >> widths.index(block.in_channels)
        kind = {"device": self.prior.device, "dtype": self.prior.dtype}
        x = torch.ones(count, block.in_channels, side, side, **kind).to(memory_format=torch.channels_last)
        return x, torch.ones(count, block.time_emb_proj.in_features, **kind)


def fresh(check: Check) -> Any:
    """Return a prior of Stable Diffusion 2.1's size; a small one on the CPU."""
    return build_prior(check.device, torch.float32 if check.dry else torch.float16, check.dry)


def unet(check: Check) -> dict[str, Any]:
    """Measure the UNet: eager, graphed, each attention, fused projections, compiled blocks."""
    own, forms = UNet(check), Forms(check)
    prior, last = own.prior, f"batch {own.batches[-1]}"
    forms.take("eager", lambda: own.form(prior.network))
    graph = {"default": forms.take("graph", lambda: own.form(Graphed(prior.network)))}
    if not check.dry:
        forms.take("kernels", own.kernels)
    for name in ATTENTION if not check.dry else list(ATTENTION)[:1]:
        work = lambda name=name: own.form(Graphed(prior.network), name, own.few)  # noqa: E731
        graph[name] = forms.take(f"graph, {name} attention", work)
    attention = fastest(graph, last) or "default"

    def fused() -> dict[str, Any]:
        prior.unet.fuse_qkv_projections()
        return own.form(Graphed(prior.network), attention, own.few)

    fuse = forms.take("graph, best attention, fused projections", fused)
    fuses = fastest({"no": graph[attention], "yes": fuse}, last) == "yes"
    if not fuses:
        prior.unet.unfuse_qkv_projections()
    norm = best_norm(forms.take("two residual blocks, compiled", own.norms, 15))
    forms.best = {"attention": attention, "fuse": fuses, "norm": norm}

    def compiled(attention: str) -> dict[str, Any]:
        compile_blocks(prior.unet, NORMS[norm], "eager" if check.dry else "inductor")
        return own.form(Graphed(prior.network), attention)

    for name in dict.fromkeys((attention, "default")):  # the second where the first cannot be compiled
        if forms.take(f"graph, {name} attention, compiled", lambda name=name: compiled(name), 25):
            forms.best["attention"] = name
            break
    if not check.dry:
        forms.take("kernels, compiled", lambda: own.kernels(forms.best["attention"]))
    other = fresh(check)
    other.unet.to(memory_format=torch.contiguous_format)
    forms.take("graph, contiguous", lambda: own.form(Graphed(other.network), "default", own.few))

    def contiguous() -> dict[str, Any]:
        compile_blocks(other.unet, NORMS["plain"], "eager" if check.dry else "inductor")
        return own.form(Graphed(other.network), forms.best["attention"], own.few)

    forms.take("graph, contiguous, compiled", contiguous, 25)
    return forms.told


class Encoder:
    """The encoder with pictures of one view and of several, and its latents and gradient in float32."""

    def __init__(self, check: Check) -> None:
        self.check, self.prior = check, fresh(check)
        self.views, side = (1, 2) if check.dry else (1, 4), self.prior.image_size
        generator = torch.Generator().manual_seed(4)
        self.pictures = {n: torch.rand(n, 3, side, side, generator=generator) for n in self.views}
        self.cotangent = torch.randn(1, *self.prior.latent_shape, generator=generator).to(check.device)
        exact = copy.copy(self.prior)
        exact.vae = copy.deepcopy(self.prior.vae).float()
        with in_full():
            self.expected = {n: self.both(exact.latents, n) for n in self.views}
        many = self.views[-1]
        pairs = zip(self.both(self.prior.latents, many), self.expected[many], strict=True)
        self.plain = [distance(*pair) for pair in pairs]

    def both(self, encode: Callable[[Tensor], Tensor], n: int) -> tuple[Tensor, Tensor]:
        """Return latents of n views, and a gradient of the pictures."""
        self.pictures[n] = self.pictures[n].to(self.check.device)
        x = self.pictures[n].detach().requires_grad_()
        z = encode(x)
        return z.detach(), torch.autograd.grad(z, x, self.cotangent.expand_as(z))[0]

    def form(
        self, encode: Callable[[Tensor], Tensor], attention: str = "default", views: tuple[int, ...] = ()
    ) -> dict[str, Any]:
        """Time an encoder and its gradient at some numbers of views."""
        chosen, milliseconds = views or self.views, self.check.milliseconds
        with first_attention(attention):
            begin, most = time.monotonic(), chosen[-1]
            far = [distance(*pair) for pair in zip(self.both(encode, most), self.expected[most], strict=True)]
            prepared = time.monotonic() - begin
            ms = {f"{n} views": milliseconds(lambda n=n: self.both(encode, n), 5) for n in chosen}
        told = {"ms": ms, "prepared_s": prepared, "far_from_float32": far, "plain_is": self.plain}
        wrong = any(not a <= WRONG * b + ROUNDING for a, b in zip(far, self.plain, strict=True))
        return told | {"wrong": wrong}

    def kernels(self, attention: str = "default") -> dict[str, Any]:
        """Return the kernels of most views, the gradient's included."""
        with first_attention(attention):
            return {"top": kernels(lambda: self.both(self.prior.latents, self.views[-1]))}

    def norms(self) -> dict[str, Any]:
        """Compare the classes of group norm on a residual block of the largest level, with its gradient."""
        block, side = self.prior.vae.encoder.down_blocks[0].resnets[0], self.prior.image_size
        kind = {"device": self.prior.device, "dtype": self.prior.vae.dtype, "requires_grad": True}
        x = torch.ones(1, block.in_channels, side, side, **kind).to(memory_format=torch.channels_last)
        return norms(self.check, [block], lambda block: block(x, None).sum().backward())


def encoder(check: Check) -> dict[str, Any]:
    """Measure the encoder with its gradient: eager, graphed, each attention, layouts, compiled blocks."""
    own, forms = Encoder(check), Forms(check)
    prior = own.prior
    forms.take("eager", lambda: own.form(prior.latents))
    if not check.dry:
        forms.take("kernels", own.kernels)
    graph = {"default": forms.take("graph", lambda: own.form(GraphedGradient(prior.latents)))}
    for name in ("efficient", "math"):
        work = lambda name=name: own.form(GraphedGradient(prior.latents), name)  # noqa: E731
        graph[name] = forms.take(f"graph, {name} attention", work)
    attention = fastest(graph, f"{own.views[-1]} views") or "default"
    norm = best_norm(forms.take("a residual block with gradient, compiled", own.norms, 15))
    forms.best = {"attention": attention, "norm": norm}

    def compiled(n: int) -> dict[str, Any]:
        compile_blocks(prior.vae.encoder, NORMS[norm], "aot_eager" if check.dry else "inductor")
        return own.form(GraphedGradient(prior.latents), attention, (n,))

    for n in reversed(own.views):  # each compiled by itself
        forms.take(f"graph, best attention, compiled, {n} views", lambda n=n: compiled(n), 15)
    if not check.dry:
        forms.take("kernels, compiled", lambda: own.kernels(attention))
    other = fresh(check)
    other.vae.to(memory_format=torch.contiguous_format)
    forms.take("graph, contiguous", lambda: own.form(GraphedGradient(other.latents)))
    return forms.told
