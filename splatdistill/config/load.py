"""Configuration in layers, merged by OmegaConf into the dataclasses of schema.py.

Later layers win: the defaults; the preset of the prior's family (views.yaml or sd.yaml), of the method in it
(views_sdi.yaml), of the task (edit.yaml, refine.yaml) and of the task in the family (views-refine.yaml),
where there are such; --config; `key.sub=value` words; flags.

`method` is a name, or a mapping with a name and settings of that method's own dataclass; a layer's settings
of another method than the one finally chosen do not apply. Strings are never interpolated: each is escaped on
its way in, so that any prompt survives the way to config.yaml and back.
"""

import dataclasses
import difflib
import functools
import math
import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from splatdistill.config.presets import named, presets_for
from splatdistill.config.schema import Config, PriorConfig
from splatdistill.errors import UserError
from splatdistill.guidance.core import Method
from splatdistill.guidance.registry import find_method
from splatdistill.priors.lora import sealed

ALIASES = {  # other names of a key, or of a whole group
    "guidance.scale": "method.guidance",
    "guidance.clip": "method.scorer",
    "timestep": "method.timesteps",
    "inversion": "method.inversion",
    "student": "method",
    "backgrounds.colours": "backgrounds.colors",
    "backgrounds.grey": "backgrounds.gray",
}
FREE_KEYS = ("backgrounds.colors", "backgrounds.colours")  # mappings whose keys are the user's
MAX_YAML_BYTES = 1 << 20

Layer = tuple[str, dict[str, Any]]  # where it comes from, and its nested values


def resolve(
    flags: Mapping[str, Any],
    config_file: str | None = None,
    words: Iterable[str] = (),
    task: str = "",
) -> Config:
    """Return the configuration of a run from its layers, see the top of this file.

    Args:
        flags: nested plain values, as in a YAML file.
        config_file: a YAML file, or None.
        words: `key.sub=value` each.
        task: whose presets apply: "edit", "edit-part", "refine" or "init"; "" for an edit where there is a
            splat.

    Raises:
        UserError: an unknown key, method or preset; a value of the wrong type or out of its range; a LoRA
            file that cannot be read.
    """
    layers: list[Layer] = []
    if config_file:
        layers.append((config_file, canonical(read_yaml(named(config_file)), config_file)))
    layers += _overrides(list(words))
    layers.append(("command line", canonical(flags, "command line")))
    name = _last(layers, "method", "name", "sdi")
    prior = _last(layers, "prior", "name", PriorConfig().name)
    task = task or ("edit" if _last(layers, "edit", "splat", "") else "")
    presets = presets_for(prior, name, task)
    layers = [(path.name, canonical(read_yaml(path), path.name)) for path in presets] + layers
    config = Config(method=_method(name, layers), prior=PriorConfig(name=prior))
    for source, values in layers:
        config = merge(config, values, source)
    return with_digests(config)


def with_digests(config: Config) -> Config:
    """Return the configuration with its LoRA files by absolute paths, and their digests.

    Raises UserError for a file that is missing, is no safetensors, or has another digest than is configured.
    """
    files, digests = sealed(config.prior.lora, config.prior.lora_sha256)
    return dataclasses.replace(
        config, prior=dataclasses.replace(config.prior, lora=files, lora_sha256=digests)
    )


def load(path: Path) -> Config:
    """Read the config.yaml of a run; raises UserError when it is missing or malformed."""
    layer = (str(path), canonical(read_yaml(path), str(path)))
    name = _last([layer], "method", "name", "sdi")
    return merge(Config(method=_method(name, [layer])), layer[1], layer[0])


def dump(config: Config) -> str:
    """Return the configuration as YAML that load() reads back to an equal one, whatever the prompt holds."""
    return yaml.safe_dump(plain(config), sort_keys=False, width=110)  # escapes what YAML would fold


def plain(value: Any) -> Any:
    """Convert dataclasses to dicts, a method with its name first, and tuples to lists, recursively."""
    if dataclasses.is_dataclass(value):
        named = {"name": value.name} if isinstance(value, Method) else {}
        return named | {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, tuple | list) else value


class _Loader(yaml.SafeLoader):
    """A YAML loader that refuses aliases, which can make a small file large."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not read")
        return super().compose_node(parent, index)


def parse_yaml(text: str) -> Any:
    """Return the plain value of a YAML text; raises ValueError with one line when it is malformed."""
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(reason or type(error).__name__) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file; raises UserError for anything else."""
    try:
        if path.stat().st_size > MAX_YAML_BYTES:
            raise ValueError(f"it is larger than {MAX_YAML_BYTES >> 20} MiB")
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the configuration {path}: {error}") from error
    if values is not None and not isinstance(values, dict):
        raise UserError(f"{path}: expected 'key: value' lines, got {type(values).__name__}")
    return values or {}


def parse_word(word: str) -> dict[str, Any]:
    """Return `a.b=value` as {"a": {"b": "value"}}; raises UserError for another form."""
    key, equals, value = word.partition("=")
    if not equals or not key:
        raise UserError(f"override '{word}': expected key=value, such as guidance.scale=10")
    return _nested(key, value)


def _overrides(words: list[str]) -> list[Layer]:
    """Merge words into one layer, since dependent settings may come as several words."""
    source = f"override '{words[0]}'" if len(words) == 1 else "overrides"
    result: dict[str, Any] = {}
    for word in words:
        _overlay(result, canonical(parse_word(word), f"override '{word}'"))
    return [(source, result)] if words else []


def _overlay(below: dict[str, Any], above: Mapping[str, Any]) -> None:
    """Replace nested values in place; a later one wins."""
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(below.get(key), dict):
            _overlay(below[key], value)
        else:
            below[key] = value


def _nested(key: str, value: Any) -> Any:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def canonical(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return values under the schema's keys: aliases replaced, a bare method or prior name expanded.

    Raises UserError, naming `source`, for a key that is not a string and for one given under two names.
    """
    result: dict[str, Any] = {}
    for path, value in _leaves(values, source):
        dotted = ".".join(path)
        for alias, key in ALIASES.items():
            if dotted == alias or dotted.startswith(alias + "."):
                dotted = key + dotted.removeprefix(alias)
        if dotted in ("method", "prior"):
            dotted += ".name"
        node = result
        *groups, last = dotted.split(".")
        for group in groups:
            node = node.setdefault(group, {})
            if not isinstance(node, dict):
                raise UserError(f"{source}: '{group}' is given both as a value and as a group of keys")
        node[last] = value
    return result


def _leaves(values: Mapping[str, Any], source: str, path: tuple[str, ...] = ()) -> Iterator[Any]:
    for key, value in values.items():
        if not isinstance(key, str) or not key:
            raise UserError(f"{source}: expected keys that are text, got {key!r}")
        here = (*path, key)
        whole = ".".join(here) in (
            "backgrounds.colors",
            "backgrounds.colours",
        )  # a value, whose keys are names
        if isinstance(value, Mapping) and value and not whole:
            yield from _leaves(value, source, here)
        else:
            yield here, value


def _last(layers: Iterable[Layer], group: str, key: str, default: str) -> str:
    """Return the text of a key in the last layer that has it; merge() refuses values of another type."""
    for _, values in layers:
        found = values.get(group)
        if isinstance(found, dict) and isinstance(found.get(key), str):
            default = found[key]
    return default


def _method(name: str, layers: Iterable[Layer]) -> Method:
    """Return the method of that name with its defaults; remove other methods' settings from the layers."""
    method = find_method(name)()
    for source, values in layers:
        settings = values.get("method")
        if settings is None:
            continue
        named = settings.pop("name", name)
        if not isinstance(named, str):
            raise UserError(f"{source}: method expects a name, such as sdi, got {named!r}")
        if named != name:
            settings.clear()
    return method


def merge(config: Config, values: Mapping[str, Any], source: str) -> Config:
    """Return the configuration with nested values replaced; raises UserError naming `source` and the key."""
    try:
        return _merged(config, values, "")
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        reason = str(error).split("\n")[0].rstrip(".")
        raise UserError(f"{source}: {f'{key}: ' if key else ''}{reason}") from error
    except _UnknownKey as error:
        raise UserError(f"{source}: {_hint(str(error), config)}") from error
    except (ValueError, TypeError) as error:
        raise UserError(f"{source}: {' '.join(str(error).split())}") from error


class _UnknownKey(Exception):
    """There is no setting with this dotted key."""


def _merged(current: Any, values: Mapping[str, Any], prefix: str) -> Any:
    """Return a dataclass with its groups merged one by one, and its own fields by OmegaConf."""
    changes, leaves = {}, {}
    for name, value in values.items():
        if name not in _fields(current):
            raise _UnknownKey(prefix + name)
        field = getattr(current, name)
        if not dataclasses.is_dataclass(field):
            leaves[name] = _escaped(_parsed(value, field, prefix + name))
        elif isinstance(value, Mapping):
            changes[name] = _merged(field, value, f"{prefix}{name}.")
        else:
            raise ValueError(f"'{prefix}{name}' is a group of keys: {', '.join(_fields(field))}")
    if leaves:
        try:
            found = OmegaConf.to_object(OmegaConf.merge(_leaf_schema(type(current)), leaves))
        except OmegaConfBaseException as error:
            name = (getattr(error, "full_key", None) or "").split(".")[0].split("[")[0] or next(iter(leaves))
            error.full_key = prefix + name
            raise
        changes |= {name: _finite(getattr(found, name), prefix + name) for name in leaves}
    return dataclasses.replace(current, **changes)


@functools.cache
def _leaf_schema(cls: type) -> Any:
    """Return OmegaConf's structured form of a dataclass's own fields, without its groups."""
    hints = typing.get_type_hints(cls)
    leaves = [f for f in dataclasses.fields(cls) if not dataclasses.is_dataclass(hints[f.name])]
    fields = [
        (f.name, hints[f.name], dataclasses.field(default=f.default, default_factory=f.default_factory))
        if f.default_factory is not dataclasses.MISSING
        else (f.name, hints[f.name], f.default)
        for f in leaves
    ]
    return OmegaConf.structured(dataclasses.make_dataclass(cls.__name__, fields))


def _parsed(value: Any, field: Any, key: str) -> Any:
    """Parse text for a field of another type as YAML when it is a list or a mapping."""
    if not isinstance(value, str) or isinstance(field, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        return parse_yaml(value)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None


def _escaped(value: Any) -> Any:
    """Return a value whose strings OmegaConf takes literally: no interpolation, no `???` for missing.

    Lists become tuples.
    """
    if isinstance(value, str):
        value = re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + r"\${", value)
        return "\\" + value if re.fullmatch(r"\\*\?\?\?", value) else value
    if isinstance(value, Mapping):
        return {key: _escaped(item) for key, item in value.items()}
    return tuple(_escaped(item) for item in value) if isinstance(value, list | tuple) else value


def _finite(value: Any, key: str) -> Any:
    """Return a value with plain strings; raises ValueError for a number that is not finite."""
    if isinstance(value, str):
        return str.__str__(value)  # OmegaConf has a type of its own for an escaped `???`
    if isinstance(value, Mapping):
        return {str.__str__(name): _finite(item, key) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return tuple(_finite(item, key) for item in value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{key} expects a finite number, got {value}")
    return value


def _fields(value: Any) -> list[str]:
    return [f.name for f in dataclasses.fields(value)]


def _hint(key: str, config: Config) -> str:
    """Return one line about an unknown key, with the nearest existing one."""
    known = [name for name, _ in leaf_values(config)] + [name for name in ALIASES if "." in name]
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if key.startswith("method."):
        return f"unknown key '{key}': method {config.method.name} has {', '.join(_fields(config.method))}"
    hint = f"did you mean '{close[0]}'?" if close else "the config.yaml of a run lists all settings"
    return f"unknown key '{key}'; {hint}"


def leaf_values(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every key of a configuration in dotted form, with its value."""
    for name in _fields(config):
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            if isinstance(value, Method):
                yield f"{prefix}{name}.name", value.name
            yield from leaf_values(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
