"""What a run does: one tree of frozen dataclasses, YAML presets that change parts of it, overrides by hand.

Layers, later ones win: the defaults here; the method's own settings (guidance/methods.py); the preset of the
prior's family (embedded.yaml or sd.yaml), of the method in it (embedded_sdi.yaml), of the prior
(embedded-image.yaml) and of edits (edit.yaml), where there are such; --config; `key.sub=value` words; flags.
Where nothing names a prior, a run that starts from a picture takes FOR_PICTURES.
Values are never interpolated, so any prompt survives the way to config.yaml and back.
"""

import dataclasses
import difflib
import math
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from splatdistill.cameras import OrbitRanges
from splatdistill.densification import DensificationConfig
from splatdistill.errors import UserError
from splatdistill.guidance import InversionSettings, StudentSettings, build_method
from splatdistill.losses import LossWeights
from splatdistill.schedules import SqrtAnneal
from splatdistill.shading import Shading

Colour = tuple[float, float, float]


FOR_PICTURES = "embedded-image"


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

    colours: dict[str, Colour] = field(default_factory=dict)
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
    background: Colour = (1.0, 1.0, 1.0)


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


def preset_folder() -> Path:
    """Return the folder of the presets: inside the installed package, or configs/ of a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def is_embedded(prior: str) -> bool:
    """Tell whether a prior is the shipped teacher or a folder with one like it, which lists its words."""
    folders = (Path(prior), Path(prior).parent)  # of a pipeline, or of one of its UNets
    return prior.split("-")[0] == "embedded" or any((path / "vocabulary.json").is_file() for path in folders)


def presets_for(prior: str, method: str, edits: bool) -> list[Path]:
    """Return the presets of the family, of the method in it, of the prior and of edits, where they exist."""
    family = "embedded" if is_embedded(prior) else "sd"
    task = Path(prior).name.replace("unet_", "-").partition("-")[2]  # of embedded-image, or of DIR/unet_image
    names = [family, f"{family}_{method}", f"{family}-{task}"] + ["edit"] * edits
    return [path for name in names if (path := preset_folder() / f"{name}.yaml").is_file()]


def method_defaults(name: str) -> Config:
    """Return the defaults with a method's own guidance, noise levels and inversion; UserError if unknown."""
    method = build_method(name)
    low, high = method.timesteps.low, method.timesteps.high
    config = Config(
        method=name,
        guidance=GuidanceConfig(scale=method.guidance),
        timestep=TimestepConfig(
            shape="sqrt" if isinstance(high, SqrtAnneal) else "linear",
            high=(high(0.0), high(1.0)),
            low=(low(0.0), low(1.0)),
        ),
    )
    return replace(config, inversion=method.noise) if isinstance(method.noise, InversionSettings) else config


def resolve(flags: Mapping[str, Any], config_file: str | None = None, words: Iterable[str] = ()) -> Config:
    """Return the configuration of a run: see the layers at the top of this file.

    flags: nested plain values, as in a YAML file; words: `key.sub=value`. Raises UserError for an unknown key
    or method, and for a value of the wrong type.
    """
    layers: list[tuple[str, Mapping[str, Any]]] = []
    if config_file:
        layers.append((config_file, read_yaml(Path(config_file))))
    layers += [(f"override '{word}'", parse_word(word)) for word in words]
    layers.append(("command line", flags))
    asked = Config()  # which prior and method, before what they imply is known
    for source, values in layers:
        asked = update(asked, values, source)
    if asked.image.path and not any("name" in (values.get("prior") or {}) for _, values in layers):
        asked = replace(asked, prior=replace(asked.prior, name=FOR_PICTURES))
    config = method_defaults(asked.method)
    presets: list[tuple[str, Mapping[str, Any]]] = [
        (path.name, read_yaml(path))
        for path in presets_for(asked.prior.name, asked.method, bool(asked.edit.splat))
    ]
    config = replace(config, prior=asked.prior)
    for source, values in presets + layers:
        config = update(config, values, source)
    return check(config)


def load(path: Path) -> Config:
    """Read the config.yaml of a run; raises UserError when it is missing or malformed."""
    return check(update(Config(), read_yaml(path), str(path)))


def dump(config: Config) -> str:
    """Return the configuration as YAML that load() reads back to an equal one, whatever the prompt holds."""
    return yaml.safe_dump(plain(config), sort_keys=False, width=110)  # escapes what YAML would fold


def plain(value: Any) -> Any:
    """Return dataclasses as dicts and tuples as lists, all the way down."""
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, tuple | list) else value


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file; raises UserError for anything else."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise UserError(f"cannot read the configuration {path}: {' '.join(str(error).split())}") from error
    if values is not None and not isinstance(values, dict):
        raise UserError(f"{path}: expected 'key: value' lines, got {type(values).__name__}")
    return values or {}


def parse_word(word: str) -> dict[str, Any]:
    """Return `a.b=value` as {"a": {"b": "value"}}; the value's type is the key's."""
    key, equals, value = word.partition("=")
    if not equals or not key:
        raise UserError(f"override '{word}': expected key=value, such as guidance.scale=10")
    nested: Any = value
    for part in reversed(key.split(".")):
        nested = {part: nested}
    return nested


def update(config: Any, values: Mapping[str, Any], source: str, prefix: str = "") -> Any:
    """Return a dataclass with the nested values replaced; raises UserError naming `source` and the key."""
    hints = typing.get_type_hints(type(config))
    changes = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key not in hints:
            close = difflib.get_close_matches(name, sorted(dotted_keys(Config())), n=1, cutoff=0.0)
            raise UserError(f"{source}: unknown key '{name}'; did you mean '{close[0]}'?")
        current = getattr(config, key)
        if not dataclasses.is_dataclass(current):
            changes[key] = coerce(value, hints[key], f"{source}: {name}")
        elif isinstance(value, Mapping):
            changes[key] = update(current, value, source, f"{name}.")
        else:
            raise UserError(f"{source}: '{name}' is a group of keys: {', '.join(vars(current))}")
    try:
        return replace(config, **changes)
    except (ValueError, TypeError) as error:
        raise UserError(f"{source}: {error}") from error


def dotted_keys(config: Any, prefix: str = "") -> Iterator[str]:
    """Yield every key of the configuration in dotted form."""
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            yield from dotted_keys(value, f"{prefix}{f.name}.")
        else:
            yield f"{prefix}{f.name}"


def coerce(value: Any, kind: Any, name: str) -> Any:
    """Return a YAML value, or its text on the command line, as the type of its field."""
    try:
        return _convert(value, kind)
    except (ValueError, TypeError, yaml.YAMLError):
        raise UserError(f"{name} expects {_describe(kind)}, got {value!r}") from None


def _convert(value: Any, kind: Any) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal or kind is str:
        if not isinstance(value, str) or (arguments and value not in arguments):
            raise ValueError
        return value
    if isinstance(value, str):
        value = yaml.safe_load(value) if kind is not float else float(value)
    if origin is dict and isinstance(value, dict):
        return {_convert(key, arguments[0]): _convert(item, arguments[1]) for key, item in value.items()}
    if origin is tuple:
        if not isinstance(value, list | tuple) or len(arguments) != len(value):
            raise ValueError
        return tuple(_convert(item, item_kind) for item, item_kind in zip(value, arguments))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise ValueError
    return value


def _describe(kind: Any) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return f"one of {', '.join(arguments)}"
    if origin is tuple:
        return f"a list of {len(arguments)} numbers, such as [{', '.join(['0.5'] * len(arguments))}]"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return names.get(kind, str(kind).replace("typing.", ""))


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
