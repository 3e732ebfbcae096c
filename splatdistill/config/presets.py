"""The presets: which YAML files apply to a prior, a method and an edit."""

from pathlib import Path

# The prior of a task, where none is named: views alone, as the presets were tuned on.
FOR_TASKS: dict[str, str] = dict.fromkeys(("edit", "edit-part", "refine"), "embedded")
FOR_PICTURES = "embedded-image"  # the prior of a run that starts from a picture, where none is named


def preset_folder() -> Path:
    """Return the folder of the presets: inside the installed package, or configs/ of a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def named(config: str) -> Path:
    """Return the file that --config means: a path, or the name of a preset (sdi_published)."""
    preset = preset_folder() / f"{config}.yaml"
    return preset if preset.is_file() and not Path(config).exists() else Path(config)


def is_embedded(prior: str) -> bool:
    """Return whether a prior is the shipped teacher or a folder of that kind, with a list of its words."""
    folders = (Path(prior), Path(prior).parent)  # of a pipeline, or of one of its UNets
    return prior.split("-")[0] == "embedded" or any((path / "vocabulary.json").is_file() for path in folders)


def presets_for(prior: str, method: str, task: str) -> list[Path]:
    """Return the presets of the family, of the method in it, of the prior and of the task, where they exist.

    A task has settings of its own (edit.yaml), and some that depend on the family (embedded-refine.yaml).
    """
    family = "embedded" if is_embedded(prior) else "sd"
    part = Path(prior).name.replace("unet_", "-").partition("-")[2]  # of embedded-image, or of DIR/unet_image
    names = [family, f"{family}_{method}", f"{family}-{part}"]
    names += [task, f"{family}-{task}"] if task else []
    return [path for name in names if (path := preset_folder() / f"{name}.yaml").is_file()]
