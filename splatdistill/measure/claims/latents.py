"""Claims that can be tested on latents alone."""

from __future__ import annotations

import torch
from torch import Tensor

from splatdistill.guidance.core import Method, distill, sample
from splatdistill.guidance.dsd import DSD, PathStart
from splatdistill.guidance.latents import cached_sdi, distill_latents, dsd_star
from splatdistill.guidance.methods import SDI, SDS
from splatdistill.guidance.noise import Inversion, ddim_inversion, walk
from splatdistill.guidance.query import add_noise, gaussian_like, predicted_noise
from splatdistill.guidance.registry import find_method
from splatdistill.measure import metrics
from splatdistill.measure.claims.base import GUIDANCE, Claim, Findings, Lab, below, interval, line, share
from splatdistill.priors.base import Conditioning

RATE = 0.05
DDIM_STEPS = 50


def rmse(a: Tensor, b: Tensor) -> list[float]:
    """Return the root mean squared difference of each sample of [B,C,h,w]."""
    return (a - b).square().flatten(1).mean(1).sqrt().tolist()


def psnr(lab: Lab, a: Tensor, b: Tensor) -> list[float]:
    """Return the PSNR in dB of the decoded latents."""
    return metrics.psnr(lab.prior.decode(a), lab.prior.decode(b)).tolist()


def first_guess(lab: Lab, z_T: Tensor, cond: Conditioning) -> Tensor:
    """Return the teacher's x_0 estimate from pure noise [B,C,h,w]: the start of DDIM's own trajectory."""
    t = torch.full((len(z_T),), len(lab.prior.alphas_cumprod) - 1)
    ab = lab.prior.alphas_cumprod[-1]
    return (z_T - (1 - ab).sqrt() * predicted_noise(lab.prior, z_T, t, cond)) / ab.sqrt()


@torch.no_grad()
def assigned(
    lab: Lab, cond: Conditioning, method: Method, z: Tensor, steps: int, generator: torch.Generator
) -> Tensor:
    """Run a method by replacing the latents with its target at every step, on its own timesteps."""
    for step in range(steps):
        t = method.timesteps.sample(step / (steps - 1), len(z), len(lab.prior.alphas_cumprod), generator)
        z = distill(lab.prior, z, t, cond, method, generator).target
    return z


def sdi_is_ddim(lab: Lab) -> Findings:
    """Measure the distance of SDI to the DDIM sample from the same noise."""
    sdi, sds = SDI(inversion=Inversion(steps=10, guidance=GUIDANCE, eta=0.0, tau=0.0)), SDS()
    found: dict[str, list[Tensor]] = {}
    truths = []
    for k, text in enumerate(lab.texts):
        noise = lab.noise(k, lab.seeds)
        cond, generator = lab.branches(text, GUIDANCE, lab.seeds), torch.Generator().manual_seed(k)
        truth = sample(lab.prior, cond, noise, DDIM_STEPS)
        begin = first_guess(lab, noise, cond)
        results = {
            "cached noise, target assigned": cached_sdi(lab.prior, cond, noise, DDIM_STEPS),
            "inversion, target assigned": assigned(lab, cond, sdi, begin, DDIM_STEPS, generator),
            "inversion, optimized": distill_latents(lab.prior, cond, sdi, begin, lab.steps, RATE, generator),
            "SDS, optimized": distill_latents(lab.prior, cond, sds, begin, lab.steps, RATE, generator),
            "DDIM from other noise": truth.roll(1, 0),
        }
        truths.append(truth)
        for name, z in results.items():
            found.setdefault(name, []).append(z)
    truth = torch.cat(truths)
    ends = {name: torch.cat(parts) for name, parts in found.items()}
    distance = {name: interval(rmse(z, truth)) for name, z in ends.items()}
    rows = [(name, [distance[name], interval(psnr(lab, z, truth))]) for name, z in ends.items()]
    exact = distance["cached noise, target assigned"].mean < 1e-3
    nearer = below(distance["inversion, optimized"], distance["SDS, optimized"])
    closest = below(distance["inversion, optimized"], distance["DDIM from other noise"])
    reading = (
        f"With the cached noise SDI {'is' if exact else 'is not'} DDIM to rounding. With inversion it ends "
        f"{'nearer to' if nearer else 'no nearer to'} that sample than SDS does, and "
        f"{'nearer' if closest else 'no nearer'} than samples from other noise are."
    )
    conditions = {"guidance": GUIDANCE, "ddim_steps": DDIM_STEPS, "steps": lab.steps, "adam": RATE}
    return Findings(["latent RMSE", "PSNR, dB"], rows, exact and nearer and closest, reading, conditions)


def sds_varies(lab: Lab) -> Findings:
    """Measure V(t) = E|g - mean g|^2 / |mean g|^2 over noise draws, at fixed latents and t."""
    times = [100, 300, 500, 700, 900]
    methods = {
        "SDS": SDS(),
        "SDI, eta .3": SDI(inversion=Inversion(guidance=0.0)),
        "SDI, eta 0": SDI(inversion=Inversion(guidance=0.0, eta=0.0, tau=0.0)),
    }
    lines, found = [], {}
    for name, method in methods.items():
        values: list[list[float]] = [[] for _ in times]
        for k, text in enumerate(lab.texts):
            cond = lab.branches(text, GUIDANCE, lab.draws)
            one = sample(lab.prior, lab.branches(text, GUIDANCE), lab.noise(k), 20)
            z = one.expand(lab.draws, -1, -1, -1).contiguous()
            for i, t in enumerate(times):
                generator = torch.Generator().manual_seed(1000 * k + i)
                g = distill(lab.prior, z, torch.full((lab.draws,), t), cond, method, generator).gradient
                mean = g.mean(0)
                spread = (g - mean).square().flatten(1).sum(1).mean()
                values[i].append((spread / mean.square().sum().clamp(min=1e-12)).item())
        lines.append(line(name, times, values))
        found[name] = [interval(v) for v in values]
    least = all(below(a, b) for a, b in zip(found["SDI, eta .3"], found["SDS"], strict=True))
    none = max(cell.high for cell in found["SDI, eta 0"]) < 1e-6
    reading = (
        f"SDS's gradient varies {'more than' if least else 'not everywhere more than'} that of SDI with its "
        f"eta of .3; without eta SDI's {'does not vary at all' if none else 'still varies'}."
    )
    columns = [f"V({t})" for t in times]
    axes = ("timestep", "relative variance of the gradient")
    conditions = {"draws": lab.draws, "guidance": GUIDANCE, "latents": "teacher samples"}
    return Findings(columns, list(found.items()), least and none, reading, conditions, lines, axes, True)


def inversion_solves(lab: Lab) -> Findings:
    """Measure |kappa - e(z_t(kappa), t, y)|^2 / d for several kinds of noise."""
    times = [200, 400, 600, 800]
    scales, counts = (-7.5, 0.0, 7.5), (3, 5, 10, 20)
    kinds: dict[str, Inversion | None] = {"random": None, "fixed": None}
    for scale in scales:
        for steps in counts if scale == -7.5 else (10,):
            name = f"inverted at {scale:+g}, {steps} steps"
            kinds[name] = Inversion(steps=steps, guidance=scale, eta=0.0, tau=0.0)
    values: dict[str, list[list[float]]] = {name: [[] for _ in times] for name in kinds}
    for k, text in enumerate(lab.texts):
        cond = lab.branches(text, 7.5, len(times))
        z = sample(lab.prior, lab.branches(text, GUIDANCE), lab.noise(k), 20)
        z = z.expand(len(times), -1, -1, -1).contiguous()
        t, generator = torch.tensor(times), torch.Generator().manual_seed(k)
        for name, settings in kinds.items():
            if settings is not None:
                eps, z_t = ddim_inversion(lab.prior, z, t, cond, settings, generator)
            else:
                eps = gaussian_like(z, generator) if name == "random" else lab.noise(7).expand_as(z)
                z_t = add_noise(lab.prior, z, t, eps)
            error = (eps - predicted_noise(lab.prior, z_t, t, cond)).square().flatten(1).mean(1)
            for i, value in enumerate(error.tolist()):
                values[name][i].append(value)
    rows = [(name, [interval(v) for v in cells]) for name, cells in values.items()]
    lines = [line(name, times, cells) for name, cells in values.items()]
    total = {
        name: interval([sum(v) / len(v) for v in zip(*cells, strict=True)]) for name, cells in values.items()
    }
    best = below(total["inverted at -7.5, 10 steps"], total["random"])
    worst = total["inverted at +7.5, 10 steps"].mean == max(
        total[f"inverted at {scale:+g}, 10 steps"].mean for scale in scales
    )
    more = total["inverted at -7.5, 20 steps"].mean < total["inverted at -7.5, 3 steps"].mean
    found = dict(rows)
    where = [
        str(t)
        for t, ours, chance in zip(times, found["inverted at -7.5, 10 steps"], found["random"], strict=True)
        if below(ours, chance)
    ]
    reading = (
        f"Noise inverted at -7.5 in 10 steps leaves {'a smaller' if best else 'no smaller'} residual than "
        f"random noise over all t (significantly at t = {', '.join(where) or 'none of them'}); of the "
        f"three scales +7.5 is {'' if worst else 'not '}the worst; 20 steps leave "
        f"{'less' if more else 'no less'} than 3."
    )
    columns = [f"t = {t}" for t in times]
    axes = ("timestep", "residual of the fixed point")
    return Findings(columns, rows, best and worst and more, reading, {"guidance": 7.5}, lines, axes, True)


def dsd_is_ddim(lab: Lab) -> Findings:
    """Compare DSD* with the end of its own trajectory."""
    steps = 10
    distances, others = [], []
    for k, text in enumerate(lab.texts):
        cond = lab.branches(text, GUIDANCE)
        ends = []
        for seed in (k, k + 1000):
            start = torch.randn(lab.prior.latent_shape, generator=torch.Generator().manual_seed(seed))[None]
            grid = torch.linspace(len(lab.prior.alphas_cumprod) - 1, 0, steps + 1).long()
            path = torch.cat([grid, torch.tensor([-1])])[None]
            ends.append(walk(lab.prior, start, path, torch.tensor([steps + 1]), cond))
        found = dsd_star(lab.prior, cond, steps, k, 1)
        distances += rmse(found, ends[0])
        others += rmse(ends[1], ends[0])
    distance = interval(distances)
    rows = [("DSD*", [distance]), ("DDIM from other noise", [interval(others)])]
    holds = distance.mean < 1e-3
    reading = (
        f"DSD with a step for each of DDIM's ends {'on' if holds else 'off'} the DDIM sample, to rounding."
    )
    return Findings(["latent RMSE"], rows, holds, reading, {"steps": steps, "guidance": GUIDANCE})


def dsd_is_diverse(lab: Lab) -> Findings:
    """Measure diversity over seeds in the judge's features, beside how often it names the thing."""
    seeds, texts = 8, lab.texts
    rows, spread = [], {}
    for name in ("DDIM", "SDS", "SDI", "DSD"):
        distances, vendi, named = [], [], []
        for k, text in enumerate(texts):
            pictures = lab.prior.decode(draw(lab, name, text, k, seeds)).clamp(0, 1)
            features = lab.jury.judge.images(pictures)
            distances.append(metrics.pairwise_distance(features))
            vendi.append(metrics.vendi_score(features))
            named += [lab.jury.names(picture[None], text) for picture in pictures]
        spread[name] = interval(distances)
        rows.append((name, [spread[name], interval(vendi), share(named)]))
    more = below(spread["SDS"], spread["DSD"]) and below(spread["SDI"], spread["DSD"])
    close = spread["DSD"].mean > 0.5 * spread["DDIM"].mean
    part = 100 * spread["DSD"].mean / spread["DDIM"].mean
    reading = (
        f"DSD's pictures over {seeds} seeds {'differ more' if more else 'do not differ more'} than those of "
        f"SDS and SDI; their distance is {part:.0f} % of that of the teacher's samples."
    )
    columns = ["pairwise distance", "Vendi score", "named"]
    conditions = {"prompts": len(texts), "seeds": seeds, "steps": lab.steps}
    conditions |= {"guidance": GUIDANCE, "adam": RATE}
    return Findings(columns, rows, more and close, reading, conditions)


def draw(lab: Lab, name: str, text: str, k: int, seeds: int) -> Tensor:
    """Return latents [seeds,C,h,w] of one text by a method, one for each seed."""
    cond, noise = lab.branches(text, GUIDANCE, seeds), lab.noise(k, seeds)
    if name == "DDIM":
        return sample(lab.prior, cond, noise, DDIM_STEPS)
    methods = {"SDI": SDI(inversion=Inversion(guidance=0.0)), "DSD": DSD()}
    method = methods.get(name) or find_method(name.lower())()
    state = method.start(lab.prior, 1000 * k)
    if isinstance(state, PathStart):  # every sample is a separate run
        starts = [PathStart.of_seed(lab.prior, seed).noise for seed in range(1000 * k, 1000 * k + seeds)]
        state = PathStart(torch.stack(starts))
    generator = torch.Generator().manual_seed(k)
    return distill_latents(lab.prior, cond, method, 0.05 * noise, lab.steps, RATE, generator, state=state)


FLAT = [
    Claim(
        "sdi-1",
        "2405.15891, section 4",
        "Score distillation with the right noise is DDIM: with the last prediction as noise and the target "
        "taken over it is so exactly, and with inverted noise it stays near.",
        sdi_is_ddim,
    ),
    Claim(
        "sdi-2",
        "2405.15891, section 5",
        "The gradient of SDS varies strongly at one picture and timestep; SDI's is the picture's own.",
        sds_varies,
    ),
    Claim(
        "sdi-3",
        "2405.15891, section 5.2 and appendix",
        "DDIM inversion solves eps = e(z_t(eps)) better than random noise; a scale of -7.5 is best and +7.5 "
        "worst, and about ten steps are enough.",
        inversion_solves,
    ),
    Claim(
        "dsd-1",
        "2412.06780, section 4",
        "With as many steps of optimization as DDIM takes, DSD is DDIM.",
        dsd_is_ddim,
    ),
    Claim(
        "dsd-2",
        "2412.06780, section 5",
        "DSD's results over seeds are as diverse as the teacher's samples; those of SDS and SDI are not.",
        dsd_is_diverse,
    ),
]
