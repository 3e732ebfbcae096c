"""The run, and its exact resume: cameras, render, encode, distil, regularise, step, densify, report."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from splatdistill import __version__
from splatdistill.config.schema import BackgroundConfig, Config, ImageConfig, OptimizerConfig
from splatdistill.folder import COMPARED, METRICS, RESULT, MetricsWriter, checkpoint_path
from splatdistill.formats.ply import write_ply
from splatdistill.guidance import Distillation, Method, build_method
from splatdistill.guidance.guide import Shot, make_guide
from splatdistill.guidance.noise import Variational
from splatdistill.guidance.prompts import pick_backgrounds
from splatdistill.guidance.schedules import Linear, SqrtAnneal, TimestepSchedule
from splatdistill.media.run_report import write_report
from splatdistill.media.sheets import compare
from splatdistill.priors.base import Prior
from splatdistill.scene.cameras import sample_orbit
from splatdistill.scene.densification import Densifier, final_prune
from splatdistill.scene.gaussians import (
    NAMES,
    clamp_to_sphere_,
    from_tensors,
    init_blob,
    moved,
    select,
    sh_degree_of,
)
from splatdistill.scene.losses import reference_errors, regularisation
from splatdistill.scene.pictures import Reference
from splatdistill.scene.rendering import Render, render
from splatdistill.scene.shading import shade
from splatdistill.training import checkpoint

Metrics = dict[str, float]
SCENES = 10  # kept over a run, beside the first


class Diverged(RuntimeError):
    """Too many bad steps in a row; the last good state was saved."""


@dataclass
class TrainState:
    """All that changes during a run; a checkpoint is this and the states of torch's global generators."""

    gaussians: torch.nn.ParameterDict
    optimizers: dict[str, torch.optim.Optimizer]
    densifier: Densifier
    method: Method  # VSD's learns
    generator: torch.Generator  # cameras, backgrounds, timesteps and noise
    step: int = 0  # steps done
    skipped: int = 0  # of them, how many were bad
    bad_in_a_row: int = 0


def new_state(
    config: Config, device: torch.device, origin: torch.nn.ParameterDict | None = None
) -> TrainState:
    """Return the state before the first step: a blob that the seed decides, or the splat that is edited."""
    torch.manual_seed(config.seed)  # what gsplat's strategies draw from
    generator = torch.Generator().manual_seed(config.seed)
    scene = config.gaussians
    gaussians = (
        init_blob(
            scene.count, scene.radius, opacity=scene.opacity, sh_degree=scene.sh_degree, generator=generator
        )
        if origin is None
        else select(origin, slice(None))
    ).to(device)
    densifier = Densifier(config.densification)
    optimizers = make_optimizers(gaussians, config.optimizer)
    densifier.initialise(gaussians, optimizers)
    return TrainState(gaussians, optimizers, densifier, method_of(config), generator)


def make_optimizers(
    gaussians: torch.nn.ParameterDict, rates: OptimizerConfig
) -> dict[str, torch.optim.Optimizer]:
    """Return one Adam a parameter, as gsplat's strategies expect them."""
    betas = (rates.beta1, rates.beta2)
    return {
        name: torch.optim.Adam([gaussians[name]], lr=getattr(rates, name), betas=betas, eps=1e-15, fused=True)
        for name in NAMES
    }


def pack(state: TrainState) -> dict[str, Any]:
    """Return the state as tensors and plain values, for checkpoint.save()."""
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return {
        "gaussians": {name: state.gaussians[name].detach() for name in NAMES},
        "optimizers": {name: optimizer.state_dict() for name, optimizer in state.optimizers.items()},
        "densifier": state.densifier.state_dict(),
        "student": state.method.noise.state_dict() if isinstance(state.method.noise, Variational) else {},
        "generator": state.generator.get_state(),
        "global_rng": {"cpu": torch.get_rng_state(), "cuda": cuda},
        "step": state.step,
        "skipped": state.skipped,
        "bad_in_a_row": state.bad_in_a_row,
    }


def unpack(saved: dict[str, Any], config: Config, device: torch.device) -> TrainState:
    """Return the state that pack() was given; a run continues from it as if never interrupted."""
    state = new_state(config, device)
    state.gaussians = from_tensors(**saved["gaussians"]).to(device)
    state.optimizers = make_optimizers(state.gaussians, config.optimizer)
    for name, optimizer in state.optimizers.items():
        optimizer.load_state_dict(saved["optimizers"][name])
    state.densifier.load_state_dict(saved["densifier"])
    if isinstance(state.method.noise, Variational):
        state.method.noise.load_state_dict(saved["student"])
    state.generator.set_state(saved["generator"])
    torch.set_rng_state(saved["global_rng"]["cpu"])
    if saved["global_rng"]["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(saved["global_rng"]["cuda"])
    state.step, state.skipped, state.bad_in_a_row = saved["step"], saved["skipped"], saved["bad_in_a_row"]
    return state


def save(state: TrainState, out: Path) -> None:
    """Write the state to the run's checkpoints, atomically."""
    checkpoint.save(checkpoint_path(out, state.step), pack(state))


def keep_scene(state: TrainState, config: Config, out: Path) -> None:
    """Write the scene beside the checkpoints, where it stays, when another tenth of the run is done."""
    before = max(state.step - config.checkpoint_every, -1)
    if state.step * SCENES // config.steps > before * SCENES // config.steps:
        write_ply(checkpoint_path(out, state.step, ".ply"), state.gaussians)


def method_of(config: Config) -> Method:
    """Return the distillation method with the run's own guidance, inversion and noise levels."""
    method = build_method(config.method, config.inversion, config.student, config.seed)
    line = SqrtAnneal if config.timestep.shape == "sqrt" else Linear
    levels = TimestepSchedule(low=line(*config.timestep.low), high=line(*config.timestep.high))
    return dataclasses.replace(method, guidance=config.guidance.scale, timesteps=levels)


def draw_backgrounds(
    config: BackgroundConfig, count: int, generator: torch.Generator
) -> tuple[list[str] | None, Tensor]:
    """Return V plain backgrounds: their names where prompts mention them, else None; and colours [V,3]."""
    if config.colours:
        names, colours = pick_backgrounds(config.colours, count, generator)
        return (names if config.in_prompt else None), colours
    low, high = config.grey
    return None, (low + (high - low) * torch.rand(count, 1, generator=generator)).expand(count, 3)


def set_learning_rates(state: TrainState, rates: OptimizerConfig, progress: float) -> None:
    """Decay every learning rate linearly to `rates.final` of its start."""
    factor = Linear(1.0, rates.final)(progress)
    for name, optimizer in state.optimizers.items():
        optimizer.param_groups[0]["lr"] = getattr(rates, name) * factor


def gradient_norm(gaussians: torch.nn.ParameterDict) -> float:
    """Return the norm of all parameter gradients together; not finite if any of them is not."""
    return float(torch.nn.utils.get_total_norm([p.grad for p in gaussians.values() if p.grad is not None]))


def reference_loss(
    state: TrainState, reference: Reference, background: Tensor, degree: int, weights: ImageConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compare the view from the picture's camera with the picture; the loss and its terms' values."""
    view = render(state.gaussians, reference.camera, background, degree)
    shown = reference.before(background).permute(0, 2, 3, 1)  # [1, H, W, 3]
    rgb, mask = reference_errors(view, shown, reference.alpha[..., None])
    loss = weights.rgb * rgb + weights.mask * mask
    return loss, {"reference_rgb": rgb.detach(), "reference_mask": mask.detach()}


def train(
    config: Config,
    prior: Prior,
    state: TrainState,
    out: Path,
    on_step: Callable[[int, Metrics], None] = lambda step, metrics: None,
    should_stop: Callable[[], bool] = lambda: False,
    reference: Reference | None = None,
    origin: torch.nn.ParameterDict | None = None,
    on_views: Callable[[Render, Distillation], None] = lambda view, distillation: None,
) -> bool:
    """Run the remaining steps, writing checkpoints/ and metrics.jsonl in `out`; return whether all were run.

    should_stop is asked between steps, and may take its time. A run that it stops is saved, as is one that
    raises Diverged. reference: a picture that the view from its camera is held to. origin: the splat that is
    edited. on_views gets the views of each step and what a teacher made of them, to look at.
    """
    guide = make_guide(config, state.method, prior, origin)
    views, scene = config.views, config.gaussians
    generator = state.generator
    if state.step == 0:
        save(state, out)  # from here on, a killed run can be resumed
        keep_scene(state, config, out)

    with MetricsWriter(out / METRICS, resume_step=state.step + 1) as metrics_file:
        while state.step < config.steps and not should_stop():
            progress = state.step / max(config.steps - 1, 1)
            set_learning_rates(state, config.optimizer, progress)

            # Look at the scene from all around, each view before a plain background of its own.
            together = prior.group if prior.group > 1 else views.opposite
            cameras = sample_orbit(views.ranges, views.count, views.size, generator, together)
            names, background = draw_backgrounds(config.backgrounds, views.count, generator)
            degree = min(sh_degree_of(state.gaussians), state.step // scene.sh_every if scene.sh_every else 3)
            view = render(state.gaussians, cameras, background, degree)

            # Ask the guide what is wrong with the pictures, and the regularisers with the Gaussians.
            shown = shade(view, cameras, background, config.shading, progress, generator)
            guided = guide(Shot(shown, cameras, background, names), progress, generator)
            if guided.distillation is not None:
                on_views(view, guided.distillation)
            penalty, terms = regularisation(view, state.gaussians, config.losses)
            loss = guided.loss + penalty
            if reference is not None:
                held, errors = reference_loss(state, reference, background[:1], degree, config.image)
                loss, terms = loss + held, terms | errors

            # Step, unless the gradient says that something broke: then the last good state stays.
            state.densifier.before_backward(view.info)
            loss.backward()
            norm = gradient_norm(state.gaussians)
            good = math.isfinite(norm) and norm <= config.guard.gradient_norm and math.isfinite(loss.item())
            if good:
                for optimizer in state.optimizers.values():
                    optimizer.step()
                state.densifier.after_backward(state.gaussians, state.optimizers, state.step, view.info)
                clamp_to_sphere_(state.gaussians, scene.bound)
            for optimizer in state.optimizers.values():
                optimizer.zero_grad(set_to_none=True)
            state.bad_in_a_row = 0 if good else state.bad_in_a_row + 1
            state.skipped += not good
            state.step += 1

            metrics: Metrics = {
                "t": float(guided.t.double().mean()),
                "loss": guided.loss.item(),
                "gradient_norm": norm,
                "gaussians": len(state.gaussians["means"]),
                "skipped": state.skipped,
                **{name: float(value) for name, value in terms.items()},
            }
            metrics_file.write(state.step, **metrics)
            on_step(state.step, metrics)
            if state.bad_in_a_row >= config.guard.bad_steps:
                state.bad_in_a_row = 0
                save(state, out)
                raise Diverged(
                    f"{config.guard.bad_steps} bad steps in a row: their gradient norm, last {norm:g}, was "
                    f"above {config.guard.gradient_norm:g} or not finite; the state before them is saved"
                )
            if state.step % config.checkpoint_every == 0 or state.step == config.steps:
                save(state, out)
                keep_scene(state, config, out)

    if state.step < config.steps:
        save(state, out)
    return state.step == config.steps


def export(state: TrainState, config: Config, out: Path, origin: torch.nn.ParameterDict | None = None) -> int:
    """Prune what is not the object, write the pictures and splat.ply; return how many Gaussians are left.

    splat.ply comes last, so that a folder which holds one holds all. origin: the splat that was edited.
    """
    limits = config.gaussians
    scene = final_prune(
        state.gaussians, limits.final_opacity, limits.final_scale, floater_share=limits.final_floaters
    )
    write_report(scene, out, config)
    if origin is not None:
        compare(origin, scene, out / COMPARED, config.report)
    comments = {
        "prompt": config.prompt,
        "method": config.method,
        "seed": str(config.seed),
        "version": __version__,
    }
    x, y, z = config.edit.shift  # an edited splat goes back to where it came from
    there = moved(moved(scene, (0.0, 0.0, 0.0), 1.0 / config.edit.scale), (-x, -y, -z), 1.0)
    return len(scene["means"]) - write_ply(out / RESULT, there, comments)
