"""The settings of a run: one tree of frozen dataclasses, their defaults, and the checks of their values."""

from dataclasses import dataclass, field
from typing import Literal

from splatdistill.errors import UserError
from splatdistill.guidance import InversionSettings, StudentSettings
from splatdistill.scene.cameras import OrbitRanges
from splatdistill.scene.densification import DensificationConfig
from splatdistill.scene.losses import LossWeights
from splatdistill.scene.shading import Shading

Color = tuple[float, float, float]


@dataclass(frozen=True)
class PriorConfig:
    """The frozen teacher."""

    name: str = "embedded"  # "embedded[-multiview|-image]", "sd21", "sd15" or a diffusers folder
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # bfloat16 on CPU, float16 on CUDA


@dataclass(frozen=True)
class GuidanceConfig:
    """How the prompt steers: eps = eps_null + scale (eps_text - eps_null)."""

    scale: float = 7.5  # for method clip, a factor of its loss
    mode: Literal["view", "perp_neg", "plain"] = (
        "view"  # view words, the other views as negatives too, or none
    )
    clip: str = "embedded"  # for method clip: the scorer, or a CLIP model's folder or name


@dataclass(frozen=True)
class TimestepConfig:
    """Each view's t is uniform in [low, high]: fractions of T that go from their first number to their second
    over the run. Low equal to high is the annealed t of SDI."""

    shape: Literal["linear", "sqrt"] = "linear"  # evenly, or fast at first
    high: tuple[float, float] = (0.98, 0.2)
    low: tuple[float, float] = (0.98, 0.2)


@dataclass(frozen=True)
class BackgroundConfig:
    """The plain colour behind a training view: one of `colours` by name; with no colours, a random grey."""

    colours: dict[str, Color] = field(default_factory=dict)
    in_prompt: bool = False  # append "NAME background", for a teacher whose captions say so
    grey: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True)
class ImageConfig:
    """A picture to start from, its camera (at azimuth 0), and how much its view counts."""

    path: str = ""  # none
    elevation_deg: float = 15.0
    distance: float = 3.0
    fov_deg: float = 40.0
    rgb: float = 4000.0  # weights of the mean squared errors before a plain background, and of alpha
    mask: float = 4000.0


@dataclass(frozen=True)
class EditConfig:
    """A splat to change, and what it shows; the prompt says what it should."""

    splat: str = ""  # a splat file; none
    source_prompt: str = ""
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)  # what moves it to the middle, the result goes back
    scale: float = 1.0  # and then into the unit sphere


@dataclass(frozen=True)
class ViewConfig:
    """The cameras of one step."""

    count: int = 4
    size: int = 64  # pixels; resized to what the prior expects where the two differ
    opposite: int = 1  # so many cameras of a step divide the circle evenly: 2 are antithetic (MV-SDI)
    ranges: OrbitRanges = field(default_factory=OrbitRanges)


@dataclass(frozen=True)
class GaussiansConfig:
    """The blob that the run starts from, its bound, and the last pruning."""

    count: int = 2000
    radius: float = 0.6
    opacity: float = 0.1
    sh_degree: int = 0
    sh_every: int = 1000  # steps between one more SH degree and the next; 0: all from the start
    bound: float = 0.95  # centres are clamped to a sphere of this radius
    final_opacity: float = 0.15  # splats below are haze, and leave at the end
    final_scale: float = 0.5  # splats above are fog
    final_floaters: float = 0.02  # clusters with less than this share of all opacity are floaters


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam's learning rates, all decaying linearly to `final` of their start."""

    means: float = 5e-3
    scales: float = 1e-2
    quats: float = 1e-2
    opacities: float = 5e-2
    sh0: float = 3e-2
    shN: float = 1.5e-3
    final: float = 0.2
    beta1: float = 0.9
    beta2: float = 0.999


@dataclass(frozen=True)
class GuardConfig:
    """When a step counts as bad, and how many in a row end the run."""

    gradient_norm: float = 1e6  # largest norm of all parameter gradients together
    bad_steps: int = 10


@dataclass(frozen=True)
class ReportConfig:
    """The pictures made at the end."""

    size: int = 256
    frames: int = 60
    elevation_deg: float = 15.0
    distance: float = 3.2
    fov_deg: float = 40.0
    background: Color = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Config:
    """Everything that a run depends on."""

    prompt: str = ""
    negative_prompt: str = ""
    method: str = "sdi"
    steps: int = 1000
    seed: int = 0
    checkpoint_every: int = 100  # steps
    prior: PriorConfig = field(default_factory=PriorConfig)
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    inversion: InversionSettings = field(default_factory=InversionSettings)
    student: StudentSettings = field(default_factory=StudentSettings)
    timestep: TimestepConfig = field(default_factory=TimestepConfig)
    image: ImageConfig = field(default_factory=ImageConfig)
    edit: EditConfig = field(default_factory=EditConfig)
    views: ViewConfig = field(default_factory=ViewConfig)
    backgrounds: BackgroundConfig = field(default_factory=BackgroundConfig)
    gaussians: GaussiansConfig = field(default_factory=GaussiansConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    densification: DensificationConfig = field(default_factory=DensificationConfig)
    losses: LossWeights = field(default_factory=LossWeights)
    shading: Shading = field(default_factory=Shading)
    guard: GuardConfig = field(default_factory=GuardConfig)
    report: ReportConfig = field(default_factory=ReportConfig)


def check(config: Config) -> Config:
    """Return the configuration; raises UserError for values that no run can have."""
    positive = {
        "steps": config.steps,
        "views.count": config.views.count,
        "views.size": config.views.size,
        "views.opposite": config.views.opposite,
        "gaussians.count": config.gaussians.count,
        "checkpoint_every": config.checkpoint_every,
        "guard.bad_steps": config.guard.bad_steps,
        "report.size": config.report.size,
        "report.frames": config.report.frames,
    }
    for name, value in positive.items():
        if value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")
    if config.views.count % config.views.opposite:
        raise UserError(
            f"views.count must be a multiple of views.opposite, got {config.views.count} and "
            f"{config.views.opposite}"
        )
    for name in ("radius", "bound"):
        if getattr(config.gaussians, name) <= 0.0:
            raise UserError(f"gaussians.{name} must be above 0, got {getattr(config.gaussians, name)}")
    if not 0.0 < config.gaussians.opacity < 1.0:
        raise UserError(f"gaussians.opacity must be between 0 and 1, got {config.gaussians.opacity}")
    if not -90.0 <= config.image.elevation_deg <= 90.0:
        raise UserError(f"image.elevation_deg must be from -90 to 90, got {config.image.elevation_deg}")
    if config.image.distance <= 0.0 or not 1.0 <= config.image.fov_deg < 180.0:
        raise UserError("image: expected a distance above 0 and a fov_deg from 1 to 179")
    if not 0 <= config.seed < 2**63:
        raise UserError(f"seed must be from 0 to 2^63 - 1, got {config.seed}")
    for low, high in zip(config.timestep.low, config.timestep.high):
        if not 0.0 < low <= high <= 1.0:
            raise UserError(f"timestep: expected 0 < low <= high <= 1, got low {low} and high {high}")
    if config.edit.scale <= 0.0:
        raise UserError(f"edit.scale must be above 0, got {config.edit.scale}")
    if config.gaussians.sh_degree not in range(4):
        raise UserError(f"gaussians.sh_degree must be 0, 1, 2 or 3, got {config.gaussians.sh_degree}")
    if config.backgrounds.in_prompt and not config.backgrounds.colours:
        raise UserError("backgrounds.in_prompt needs names in backgrounds.colours")
    return config
