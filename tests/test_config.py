import dataclasses
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from splatdistill.config.load import dotted_keys, dump, load, read_yaml, resolve, update
from splatdistill.config.presets import preset_folder
from splatdistill.config.schema import Config, check
from splatdistill.errors import UserError


def message(*arguments, **keywords) -> str:
    with pytest.raises(UserError) as caught:
        resolve(*arguments, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def round_trip(config: Config, path) -> Config:
    path.write_bytes(dump(config).encode())
    return load(path)


@given(st.text())
@settings(max_examples=60, deadline=None)
def test_any_prompt_survives_config_yaml(tmp_path_factory, prompt):
    config = dataclasses.replace(Config(), prompt=prompt)
    assert round_trip(config, tmp_path_factory.getbasetemp() / "config.yaml") == config


@pytest.mark.parametrize(
    "prompt", ["a # b: c", "${HOME} ${a.b}", "'\"\\", "null", "1e3", "- x", "a\nb", "🍄", "\udce9", "\0"]
)
def test_prompts_that_look_like_yaml_survive(tmp_path, prompt):
    config = resolve({"prompt": prompt})
    assert config.prompt == prompt
    assert round_trip(config, tmp_path / "config.yaml").prompt == prompt


def test_a_written_configuration_repeats_the_run(tmp_path):
    config = resolve({"prompt": "a duck", "method": "sds"}, words=["views.ranges.fov_deg=[30, 50]"])
    path = tmp_path / "config.yaml"
    path.write_text(dump(config))
    assert resolve({}, str(path)) == config


@pytest.mark.parametrize("preset", sorted(preset_folder().glob("*.yaml")), ids=lambda path: path.name)
def test_every_preset_is_valid(preset):
    values = read_yaml(preset)
    check(update(Config(), values, preset.name))
    assert values


def test_presets_follow_the_prior():
    assert resolve({}).views.size == 64
    assert resolve({"prior": {"name": "sd21"}}).views.size == 512
    assert resolve({"prior": {"name": "/some/folder"}}).views.size == 512


def test_a_folder_that_lists_its_words_gets_the_embedded_preset(tmp_path):
    (tmp_path / "vocabulary.json").write_text("[]")
    assert resolve({"prior": {"name": str(tmp_path)}}).views.size == 64


def test_method_brings_its_own_settings():
    sds = resolve({"method": "sds", "prior": {"name": "sd21"}})
    assert (sds.guidance.scale, sds.timestep.low, sds.timestep.high) == (100.0, (0.02, 0.02), (0.98, 0.5))
    assert resolve({"method": "sdi_published", "prior": {"name": "sd21"}}).inversion.published


def test_later_layers_win(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("steps: 7\nguidance:\n  scale: 3\nviews:\n  count: 2\n")
    config = resolve({"steps": 9}, str(path), ["guidance.scale=4"])
    assert (config.steps, config.guidance.scale, config.views.count) == (9, 4.0, 2)


def test_numbers_of_every_spelling_are_read():
    config = resolve(
        {}, words=["optimizer.means=1e-3", "guidance.scale=10", "views.ranges.distance=[3, 3.5]"]
    )
    assert (config.optimizer.means, config.guidance.scale, config.views.ranges.distance) == (
        1e-3,
        10.0,
        (3.0, 3.5),
    )


def test_a_text_override_is_taken_literally():
    assert resolve({}, words=["prompt=a=b # ${c}: 1"]).prompt == "a=b # ${c}: 1"


def test_unknown_key_names_the_nearest():
    assert "'guidance.scale'" in message({}, words=["guidance.scael=3"])
    assert "'steps'" in message({}, words=["stesp=3"])


@pytest.mark.parametrize(
    "word",
    [
        "steps=many",
        "steps=1.5",
        "steps=true",
        "steps=0",
        "guidance=3",
        "guidance.scale=[1]",
        "guidance.mode=front",
        "inversion.published=1",
        "views.ranges.distance=3",
        "views.ranges.distance=[3]",
        "views.ranges.distance=[4, 3]",
        "views.ranges.elevation_deg={a: 1}",
        "timestep.low=[0.5, 0.9]",
        "backgrounds.colours=red",
        "gaussians.sh_degree=4",
        "gaussians.opacity=1",
        "gaussians.bound=0",
        "guidance.scale=nan",
        "optimizer.means=.inf",
        "seed=-1",
        "inversion.steps=0",
        "noequals",
        "=3",
        "steps=[",
        "method=foo",
    ],
)
def test_a_wrong_value_is_one_clear_line(word):
    text = message({}, words=[word])
    assert word.split("=")[0].split(".")[0].rstrip("s") in text


@pytest.mark.parametrize("text", ["[1, 2]", "a: b: c", "\t- x: [", "\x00"])
def test_a_broken_file_is_one_clear_line(tmp_path, text):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    assert "broken.yaml" in message({}, str(path))


def test_a_missing_file_is_named(tmp_path):
    assert "absent.yaml" in message({}, str(tmp_path / "absent.yaml"))


def test_dumped_keys_are_the_dotted_keys():
    def flatten(values, prefix=""):
        for key, value in values.items():
            nested = isinstance(value, dict) and prefix + key != "backgrounds.colours"
            yield from flatten(value, f"{prefix}{key}.") if nested else [prefix + key]

    assert list(flatten(yaml.safe_load(dump(Config())))) == list(dotted_keys(Config()))


def test_a_priors_own_preset_comes_after_its_familys(tmp_path, monkeypatch) -> None:
    pictured = {"image": {"path": "mug.png"}}
    assert resolve(pictured).prior.name == "embedded-image"
    assert resolve(pictured, None, ["prior.name=embedded"]).prior.name == "embedded"
    for name, count in {"embedded": 4, "embedded-image": 3, "embedded_sds": 5}.items():
        (tmp_path / f"{name}.yaml").write_text(f"views: {{count: {count}}}")
    (tmp_path / "vocabulary.json").write_text("[]")
    monkeypatch.setattr("splatdistill.config.presets.preset_folder", lambda: tmp_path)
    assert resolve({"prior": {"name": "embedded"}}).views.count == 4
    assert resolve({"prior": {"name": "embedded"}, "method": "sds"}).views.count == 5
    assert resolve({"prior": {"name": "embedded-image"}, "method": "sds"}).views.count == 3
    assert resolve({"prior": {"name": str(tmp_path / "unet_image")}}).views.count == 3


def test_a_preset_can_be_named_and_a_file_of_that_name_goes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve({}, "sdi_published") == resolve({}, str(preset_folder() / "sdi_published.yaml"))
    Path("sdi_published").write_text("seed: 7\n")
    assert resolve({}, "sdi_published").seed == 7
