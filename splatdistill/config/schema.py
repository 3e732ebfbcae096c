"""The settings of a run: one tree of frozen dataclasses, their defaults, and the checks of their values."""

from dataclasses import dataclass, field
from typing import Literal

from splatdistill.config.presets import DEFAULT
from splatdistill.guidance.core import Method
from splatdistill.guidance.methods import SDI
from splatdistill.guidance.reward import RewardConfig
from splatdistill.scene.cameras import OrbitRanges
from splatdistill.scene.densification import DensificationConfig
from splatdistill.scene.losses import HoldWeights, LossWeights
from splatdistill.scene.shading import Shading

Color = tuple[float, float, float]


def require(good: bool, message: str) -> None:
    """Raise ValueError with this message unless `good`."""
    if not good:
        raise ValueError(message)


def at_least_one(**values: int) -> None:
    """Raise ValueError naming the first value below 1; `__` in a name stands for a dot."""
    for name, value in values.items():
        require(value >= 1, f"{name.replace('__', '.')} must be at least 1, got {value}")


@dataclass(frozen=True)
class PriorConfig:
    """The frozen teacher."""

    name: str = DEFAULT  # or sd21, sd15, a diffusers folder
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # bfloat16 on CPU, float16 on CUDA
    lora: tuple[str, ...] = ()  # safetensors files, FILE or FILE:SCALE, added to its networks
    models: int = 1  # of a thing that a teacher with an album means; several: the one nearest to each scene
    slice: int = 0  # views encoded at a time: less memory, but the encoder runs twice; 0: all at once
    compile: bool = False  # its networks, on a GPU with triton; pays from about a thousand steps on
    lora_sha256: tuple[str, ...] = ()  # of these files, filled in when a run is configured

    def __post_init__(self) -> None:
        at_least_one(prior__models=self.models)
        require(self.slice >= 0, f"prior.slice must be 0 or more, got {self.slice}")


@dataclass(frozen=True)
class GuidanceConfig:
    """How the prompt follows the view; the scale of guidance is the method's (`method.guidance`)."""

    mode: Literal["view", "perp_neg", "plain"] = "view"  # view words; other views as negatives too; or none


@dataclass(frozen=True)
class BackgroundConfig:
    """The plain color behind a training view: one of `colors` by name, or a random gray without colors."""

    colors: dict[str, Color] = field(default_factory=dict)
    in_prompt: bool = False  # append "NAME background", for a teacher whose captions say so
    gray: tuple[float, float] = (0.0, 1.0)
    shared: bool = False  # one for all views that a teacher denoises together

    def __post_init__(self) -> None:
        require(
            not self.in_prompt or bool(self.colors), "backgrounds.in_prompt needs names in backgrounds.colors"
        )


@dataclass(frozen=True)
class ImageConfig:
    """A reference picture, its camera (at azimuth 0), and the weight of that view."""

    path: str = ""  # none
    elevation_deg: float = 15.0
    distance: float = 3.0
    fov_deg: float = 40.0
    rgb: float = 4000.0  # weights of the mean squared errors before a plain background, and of alpha
    mask: float = 4000.0

    def __post_init__(self) -> None:
        elevation = self.elevation_deg
        require(-90.0 <= elevation <= 90.0, f"image.elevation_deg must be from -90 to 90, got {elevation}")
        good = self.distance > 0.0 and 1.0 <= self.fov_deg < 180.0
        require(good, "image: expected a distance above 0 and a fov_deg from 1 to 179")


@dataclass(frozen=True)
class CapturesConfig:
    """Reference pictures with cameras, of which every step sees one; weights as in ImageConfig."""

    path: str = ""  # a transforms.json in the frame of the splat; none
    rgb: float = 4000.0
    mask: float = 4000.0


@dataclass(frozen=True)
class EditConfig:
    """A splat to start from, and of an edit the prompt of what it shows and the part that may change."""

    splat: str = ""  # a splat file, a point cloud or a mesh; none
    program: str = ""  # that wrote it, see formats.conventions; "" for the format's own axes
    up: str = ""  # its axis up, where that differs from the format's
    source_prompt: str = ""
    mask: str = ""  # see scene.masks; "" for all of it
    seeds: int = 0  # faint Gaussians that a run with a mask adds in its region
    shift: tuple[float, float, float] = (
        0.0,
        0.0,
        0.0,
    )  # translation that centers the splat; undone in the result
    scale: float = 1.0  # scale after it, into the unit sphere; undone too

    def __post_init__(self) -> None:
        require(self.scale > 0.0, f"edit.scale must be above 0, got {self.scale}")
        require(0 <= self.seeds <= 1_000_000, f"edit.seeds must be from 0 to 1000000, got {self.seeds}")


@dataclass(frozen=True)
class ViewConfig:
    """The cameras of one step."""

    count: int = 4
    size: int = 64  # pixels; resized to what the prior expects where the two differ
    opposite: int = 1  # consecutive cameras that divide the circle evenly; 2: antithetic (MV-SDI)
    ranges: OrbitRanges = field(default_factory=OrbitRanges)

    def __post_init__(self) -> None:
        at_least_one(views__count=self.count, views__size=self.size, views__opposite=self.opposite)
        good = self.count % self.opposite == 0
        require(
            good, f"views.count must be a multiple of views.opposite, got {self.count} and {self.opposite}"
        )


@dataclass(frozen=True)
class GaussiansConfig:
    """The initial blob, the bound of the scene, and the final pruning."""

    count: int = 2000
    radius: float = 0.6
    opacity: float = 0.1
    sh_degree: int = 0
    sh_every: int = 1000  # steps between increments of the SH degree; 0: full degree from the start
    bound: float = 0.95  # centers are clamped to a sphere of this radius
    unrounded: bool = False  # whether a splat of rounded values that a run starts from is narrowed first
    filled: bool = False  # whether one with holes all over that a run starts from is widened first
    lonely: int = 0  # of a splat that a run starts from: neighbors without which a Gaussian is dropped first
    final_opacity: float = 0.15  # Gaussians of lower opacity are pruned at the end
    final_scale: float = 0.5  # larger Gaussians are pruned at the end, world units
    final_floaters: float = 0.02  # clusters with a smaller share of the total opacity are pruned

    def __post_init__(self) -> None:
        at_least_one(gaussians__count=self.count)
        for name in ("radius", "bound"):
            require(getattr(self, name) > 0.0, f"gaussians.{name} must be above 0, got {getattr(self, name)}")
        require(0.0 < self.opacity < 1.0, f"gaussians.opacity must be between 0 and 1, got {self.opacity}")
        good = self.sh_degree in range(4)
        require(good, f"gaussians.sh_degree must be 0, 1, 2 or 3, got {self.sh_degree}")
        require(self.sh_every >= 0, f"gaussians.sh_every must be at least 0, got {self.sh_every}")


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

    def __post_init__(self) -> None:
        for name in ("beta1", "beta2"):
            good = 0.0 <= getattr(self, name) < 1.0
            require(good, f"optimizer.{name} must be at least 0 and below 1, got {getattr(self, name)}")
        for name in ("means", "scales", "quats", "opacities", "sh0", "shN", "final"):
            require(
                getattr(self, name) >= 0.0, f"optimizer.{name} must be at least 0, got {getattr(self, name)}"
            )


@dataclass(frozen=True)
class GuardConfig:
    """Limits beyond which a step counts as bad, and how many in a row end the run."""

    gradient_norm: float = 1e6  # largest norm of all parameter gradients together
    bad_steps: int = 10

    def __post_init__(self) -> None:
        at_least_one(guard__bad_steps=self.bad_steps)


@dataclass(frozen=True)
class ReportConfig:
    """The images made at the end."""

    size: int = 256
    frames: int = 60
    elevation_deg: float = 15.0
    distance: float = 3.2
    fov_deg: float = 40.0
    background: Color = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        at_least_one(report__size=self.size, report__frames=self.frames)


@dataclass(frozen=True)
class Config:
    """All settings of a run."""

    prompt: str = ""
    negative_prompt: str = ""
    method: Method = field(default_factory=SDI)
    steps: int = 1000
    seed: int = 0
    checkpoint_every: int = 100  # steps
    prior: PriorConfig = field(default_factory=PriorConfig)
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    image: ImageConfig = field(default_factory=ImageConfig)
    captures: CapturesConfig = field(default_factory=CapturesConfig)
    edit: EditConfig = field(default_factory=EditConfig)
    views: ViewConfig = field(default_factory=ViewConfig)
    backgrounds: BackgroundConfig = field(default_factory=BackgroundConfig)
    gaussians: GaussiansConfig = field(default_factory=GaussiansConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    densification: DensificationConfig = field(default_factory=DensificationConfig)
    losses: LossWeights = field(default_factory=LossWeights)
    hold: HoldWeights = field(default_factory=HoldWeights)
    shading: Shading = field(default_factory=Shading)
    guard: GuardConfig = field(default_factory=GuardConfig)
    report: ReportConfig = field(default_factory=ReportConfig)

    def __post_init__(self) -> None:
        at_least_one(steps=self.steps, checkpoint_every=self.checkpoint_every)
        require(0 <= self.seed < 2**63, f"seed must be from 0 to 2^63 - 1, got {self.seed}")
