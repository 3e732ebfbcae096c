"""The training loop, with exact resume: cameras, render, encode, distill, regularize, step, densify."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from splatdistill.config.load import dump
from splatdistill.config.schema import BackgroundConfig, CapturesConfig, Config, ImageConfig
from splatdistill.errors import Diverged
from splatdistill.folder import METRICS, MetricsWriter, checkpoint_path
from splatdistill.formats.ply import write_ply
from splatdistill.guidance.guide import Guide
from splatdistill.guidance.prompts import pick_backgrounds
from splatdistill.guidance.reward import Reward
from splatdistill.ops import upload
from splatdistill.priors.base import Prior
from splatdistill.scene.cameras import Cameras, sample_orbit
from splatdistill.scene.captures import Captures
from splatdistill.scene.gaussians import clamp_to_sphere_, sh_degree_of
from splatdistill.scene.losses import holding, reference_errors, regularization
from splatdistill.scene.pictures import Reference
from splatdistill.scene.rendering import Render, render
from splatdistill.scene.shading import shade
from splatdistill.training import checkpoint
from splatdistill.training.origin import Origin
from splatdistill.training.parallel import Alone
from splatdistill.training.progress import Metrics, NullWatcher, Watcher
from splatdistill.training.state import TrainState

GRIPPED = 0.5  # of the hold on a splat, above which nothing is born or pruned in it
SCENES = 10  # number of scenes kept over a run, beside the first


def save(state: TrainState, config: Config, out: Path, ranks: Alone, *, scene: bool = True) -> None:
    """Write the state to the run's checkpoints, and before it the scene where that is kept.

    ranks: of which the first writes. scene: whether to keep it, if another tenth of the run is done.
    """
    state.drop_broken()
    ranks.keep_same(state)
    if not ranks.first:
        return
    before = max(state.step - config.checkpoint_every, -1)
    if scene and state.step * SCENES // config.steps > before * SCENES // config.steps:
        write_ply(checkpoint_path(out, state.step, ".ply"), state.gaussians)
    settings = {"settings": dump(config)}
    checkpoint.save(checkpoint_path(out, state.step), state.state_dict() | settings)


def draw_backgrounds(
    config: BackgroundConfig, count: int, generator: torch.Generator, group: int = 1
) -> tuple[list[str] | None, Tensor]:
    """Draw V plain backgrounds: their names if prompts mention them, else None; and colors [V,3].

    `group` consecutive ones are the same where the configuration says so.
    """
    if config.shared and group > 1:
        names, colors = draw_backgrounds(config, count // group, generator)
        repeated = None if names is None else [name for name in names for _ in range(group)]
        return repeated, colors.repeat_interleave(group, 0)
    if config.colors:
        names, colors = pick_backgrounds(config.colors, count, generator)
        return (names if config.in_prompt else None), colors
    low, high = config.gray
    return None, (low + (high - low) * torch.rand(count, 1, generator=generator)).expand(count, 3)


def guide_of(config: Config, prior: Prior, state: TrainState) -> Guide:
    """Return the guide of a configuration, with the state of its method restored or started."""
    guide = Guide(
        prior,
        config.method,
        config.prompt,
        negative=config.negative_prompt,
        views=config.guidance.mode,
        source_prompt=config.edit.source_prompt,
        seed=config.seed,
        state=state.method,
        reward=Reward.load(config.reward, prior),
        slice=config.prior.slice,
    )
    state.method = guide.state
    return guide


def drop_gradients_(gaussians: torch.nn.ParameterDict, held: Tensor | None) -> None:
    """Set the gradients of the `held` [N] Gaussians to zero: Adam, whose moments stay zero, leaves them."""
    if held is not None:
        for parameter in gaussians.values():
            if parameter.grad is not None:
                parameter.grad[held] = 0.0


def gradient_norm(gaussians: torch.nn.ParameterDict) -> Tensor:
    """Return the norm of all parameter gradients together; not finite if any of them is not."""
    return torch.nn.utils.get_total_norm([p.grad for p in gaussians.values() if p.grad is not None])


@dataclass(frozen=True)
class Anchors:
    """What a run is held to beside its prompt.

    Args:
        reference: a picture that the view from its camera should match.
        origin: the splat that the run starts from.
        captures: pictures with cameras, of which every step sees one.
    """

    reference: Reference | None = None
    origin: Origin | None = None
    captures: Captures | None = None

    @torch.no_grad()
    def before(self, config: Config, cameras: Cameras, background: Tensor) -> Render | None:
        """Render views of the origin, where the method or what holds to it reads them."""
        if self.origin is None or not (config.method.edits or config.hold.sees):
            return None
        return render(self.origin.placed, cameras, background)

    def loss(
        self,
        config: Config,
        state: TrainState,
        view: Render,
        before: Render | None,
        background: Tensor,
        first: Tensor,
        degree: int,
        progress: float,
    ) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Yield the loss of each anchor and its named terms, detached.

        before: what `before` gave; background [V, 3]: behind the views, and first [1, 3] behind a picture;
        degree: the SH bands in use.
        """
        if self.origin is not None:
            placed, rows = self.origin.placed, state.densifier.rows
            hold = (state.gaussians, placed, rows, config.hold, state.grip, progress)
            yield holding(view, before, background, *hold)
        if self.reference is not None:
            yield reference_loss(state, self.reference, first, degree, config.image)
        if self.captures is not None:
            drawn = int(torch.randint(len(self.captures), (1,), generator=state.generator))
            weights = config.captures
            yield reference_loss(state, self.captures[drawn], first, degree, weights, "capture")

    def keep_(self, state: TrainState) -> None:
        """Move what left the mask of an edit back into it."""
        if self.origin is not None and self.origin.mask is not None:
            self.origin.mask.keep_inside_(state.gaussians["means"], state.densifier.free(state.gaussians))


def reference_loss(
    state: TrainState,
    reference: Reference,
    background: Tensor,
    degree: int,
    weights: ImageConfig | CapturesConfig,
    name: str = "reference",
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compare the view from the reference camera with the picture; return the loss and its named terms."""
    view = render(state.gaussians, reference.camera, background, degree)
    shown = reference.before(background).permute(0, 2, 3, 1)  # [1, H, W, 3]
    rgb, mask = reference_errors(view, shown, reference.alpha[..., None])
    loss = weights.rgb * rgb + weights.mask * mask
    return loss, {f"{name}_rgb": rgb.detach(), f"{name}_mask": mask.detach()}


def train(
    config: Config,
    prior: Prior,
    state: TrainState,
    out: Path,
    watcher: Watcher | None = None,
    anchors: Anchors | None = None,
    ranks: Alone | None = None,
) -> bool:
    """Run the remaining steps, writing checkpoints/ and metrics.jsonl in `out`; return whether all were run.

    The state is saved when the watcher stops the run, and when it diverges.

    Args:
        config: the settings.
        prior: the teacher.
        state: the state to continue from; changed in place.
        out: the folder of the run, with checkpoints/ in it.
        watcher: called for every step; may stop the run.
        anchors: what the run is held to.
        ranks: the processes that share the views of each step.

    Raises:
        Diverged: too many bad steps in a row; the state before them was saved.
        UserError: a file cannot be written, or another process was lost.
    """
    watcher, anchors, ranks = watcher or NullWatcher(), anchors or Anchors(), ranks or Alone()
    guide = guide_of(config, prior, state)
    views, scene = config.views, config.gaussians
    generator = state.generator
    state.grip = ranks.told(state.grip)
    ranks.average_before_steps(guide.state.optimizers)
    if state.step == 0:
        save(state, config, out, ranks)  # from here on a killed run can be resumed
    if state.grip >= 1.0 and state.step < config.steps:  # no step would change anything: all rates are 0
        state.step = config.steps
        save(state, config, out, ranks)
    mine = ranks.mine(views.count)

    with MetricsWriter(out / METRICS if ranks.first else None, resume_step=state.step + 1) as metrics_file:
        while state.step < config.steps and not ranks.any(watcher.should_stop()):
            progress = state.step / max(config.steps - 1, 1)
            state.set_learning_rates(progress)

            # Render random views, each on its own plain background; all processes draw the same ones.
            together = prior.group if prior.group > 1 else views.opposite
            ranges, places = views.ranges, prior.places_deg
            cameras = sample_orbit(ranges, views.count, views.size, generator, together, places)
            names, background = draw_backgrounds(config.backgrounds, views.count, generator, prior.group)
            degree = min(sh_degree_of(state.gaussians), state.step // scene.sh_every if scene.sh_every else 3)
            own = ranks.noise(generator, config.seed, state.step)
            cameras, names = cameras[mine], names and names[mine]
            placed = cameras.to(state.device)
            background, first = upload([background[mine], background[:1]], state.device)
            view = render(state.gaussians, placed, background, degree)

            # Loss: distillation of the images, and regularization of the Gaussians.
            shown = shade(view, placed, background, config.shading, progress, own)
            before = anchors.before(config, placed, background)
            guided = guide(
                shown,
                progress,
                cameras,
                generator=own,
                background=background,
                names=names,
                source=before.rgb if before is not None and config.method.edits else None,
                scene=state.gaussians,
            )
            if guided.distillation is not None:
                watcher.on_views(view, guided.distillation)
            penalty, terms = regularization(view, state.gaussians, config.losses)
            loss = guided.loss + penalty
            for held, errors in anchors.loss(
                config, state, view, before, background, first, degree, progress
            ):
                loss, terms = loss + held, terms | errors

            # Step, unless the gradient is not finite or too large; then the state is unchanged.
            state.densifier.before_backward(view.info)
            loss.backward()
            seen = state.densifier.seen(state.step, view.info)
            losses = torch.stack([loss.detach(), guided.loss.detach(), *terms.values()])
            gradients = [p.grad for p in state.gaussians.values() if p.grad is not None]
            ranks.add_up_([*gradients, losses], seen)
            drop_gradients_(state.gaussians, state.densifier.held)
            norm = gradient_norm(state.gaussians)
            # All numbers of the step at once: here the host waits for the device.
            total, distilled, *values, norm = torch.cat([losses, norm[None]]).tolist()
            good = math.isfinite(norm) and norm <= config.guard.gradient_norm and math.isfinite(total)
            if good:
                for optimizer in state.optimizers.values():
                    optimizer.step()
                if state.grip <= GRIPPED:
                    state.densifier.after_backward(state.gaussians, state.optimizers, state.step, seen)
                clamp_to_sphere_(state.gaussians, scene.bound)
                anchors.keep_(state)
            for optimizer in state.optimizers.values():
                optimizer.zero_grad(set_to_none=True)
            state.bad_in_a_row = 0 if good else state.bad_in_a_row + 1
            state.skipped += not good
            state.step += 1

            metrics: Metrics = {
                "t": float(guided.t.double().mean()),
                "loss": distilled,
                "gradient_norm": norm,
                "gaussians": len(state.gaussians["means"]),
                "skipped": state.skipped,
                **dict(zip(terms, values, strict=True)),
            }
            metrics_file.write(state.step, **metrics)
            watcher.on_step(state.step, metrics)
            if state.bad_in_a_row >= config.guard.bad_steps:
                state.bad_in_a_row = 0
                save(state, config, out, ranks, scene=False)
                raise Diverged(
                    f"{config.guard.bad_steps} bad steps in a row: their gradient norm, last {norm:g}, was "
                    f"above {config.guard.gradient_norm:g} or not finite; the state before them is saved"
                )
            if state.step % config.checkpoint_every == 0 or state.step == config.steps:
                save(state, config, out, ranks)

    if state.step < config.steps:
        save(state, config, out, ranks, scene=False)
    return state.step >= config.steps
