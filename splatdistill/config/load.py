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
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import yaml

from splatdistill.config.presets import FOR_PICTURES, named, presets_for
from splatdistill.config.schema import Config, GuidanceConfig, TimestepConfig, check
from splatdistill.errors import UserError
from splatdistill.guidance import InversionSettings, build_method
from splatdistill.guidance.schedules import SqrtAnneal


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
        layers.append((config_file, read_yaml(named(config_file))))
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
