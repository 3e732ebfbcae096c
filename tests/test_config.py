import random
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from splatdistill.config.load import (
    canonical,
    dump,
    leaf_values,
    load,
    merge,
    parse_yaml,
    plain,
    read_yaml,
    resolve,
)
from splatdistill.config.presets import preset_folder
from splatdistill.config.schema import Config
from splatdistill.errors import UserError
from splatdistill.guidance.dsd import DSD
from splatdistill.guidance.methods import SDS, SDIPublished
from splatdistill.guidance.registry import find_method


def message(*arguments, **keywords) -> str:
    with pytest.raises(UserError) as caught:
        resolve(*arguments, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def round_trip(config: Config, path) -> Config:
    path.write_bytes(dump(config).encode())
    return load(path)


def worded(prompt: str, negative: str, source: str) -> dict:
    """Return the flags of three texts that are the user's."""
    return {"prompt": prompt, "negative_prompt": negative, "edit": {"source_prompt": source}}


@given(st.tuples(st.text(), st.text(), st.text()))
@settings(max_examples=20, deadline=None)
def test_any_prompts_survive_config_yaml(tmp_path_factory, prompts):
    config = merge(Config(), worded(*prompts), "test")
    assert (config.prompt, config.negative_prompt, config.edit.source_prompt) == prompts
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
    method = values.get("method", {})
    name = method if isinstance(method, str) else preset.stem.partition("_")[2] or "sdi"
    config = Config(method=find_method(name)())
    values = canonical(values, preset.name)
    values.get("method", {}).pop("name", None)
    assert merge(config, values, preset.name) != config or isinstance(method, str)


def test_presets_follow_the_prior():
    assert resolve({}).views.size == 128
    assert resolve({"prior": {"name": "sd21"}}).views.size == 512
    assert resolve({"prior": {"name": "/some/folder"}}).views.size == 512


def test_method_brings_its_own_settings():
    sds = resolve({"method": "sds", "prior": {"name": "sd21"}})
    assert sds.method == SDS()
    assert resolve({"method": "sdi_published", "prior": {"name": "sd21"}}).method == SDIPublished()


def test_later_layers_win(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("steps: 7\nguidance:\n  scale: 3\nviews:\n  count: 2\n")
    config = resolve({"steps": 9}, str(path), ["guidance.scale=4"])
    assert (config.steps, config.method.guidance, config.views.count) == (9, 4.0, 2)


def test_numbers_of_every_spelling_are_read():
    config = resolve(
        {}, words=["optimizer.means=1e-3", "guidance.scale=10", "views.ranges.distance=[3, 3.5]"]
    )
    assert (config.optimizer.means, config.method.guidance, config.views.ranges.distance) == (
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
        "views.ranges.distance=3",
        "views.ranges.distance=[3]",
        "views.ranges.distance=[4, 3]",
        "views.ranges.elevation_deg={a: 1}",
        "timestep.low=[0.5, 0.9]",
        "backgrounds.colors=red",
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
            nested = isinstance(value, dict) and prefix + key != "backgrounds.colors"
            yield from flatten(value, f"{prefix}{key}.") if nested else [prefix + key]

    assert list(flatten(yaml.safe_load(dump(Config())))) == [key for key, _ in leaf_values(Config())]


def test_the_presets_of_a_family_come_before_those_of_a_method_in_it(tmp_path, monkeypatch) -> None:
    for name, count in {"views": 4, "views_sds": 5}.items():
        (tmp_path / f"{name}.yaml").write_text(f"views: {{count: {count}}}")
    monkeypatch.setattr("splatdistill.config.presets.preset_folder", lambda: tmp_path)
    assert resolve({}).views.count == 4 and resolve({"prior": {"name": "real"}}).views.count == 4
    assert resolve({"method": "sds"}).views.count == 5


def test_a_preset_can_be_named_and_a_file_of_that_name_goes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve({}, "sdi_published") == resolve({}, str(preset_folder() / "sdi_published.yaml"))
    Path("sdi_published").write_text("seed: 7\n")
    assert resolve({}, "sdi_published").seed == 7


PIECES = ["$", "{", "}", "\\", "?", "???", "${oc.env:HOME}", "a", "\n", "'", '"', ":", " ", "#", "\udce9"]
PIECES += ["[", "]", "\0", "null", "%", "${", "\\${", "&a", "*a", "!!python", "-", "1e3", "\u2028", "🍄"]


@pytest.mark.slow
def test_twenty_thousand_random_prompts_survive_the_merge_and_yaml() -> None:
    draw = random.Random(0)
    default = Config()
    for _ in range(20_000):
        prompt = "".join(draw.choice(PIECES) for _ in range(draw.randrange(9)))
        merged = merge(default, {"prompt": prompt}, "test").prompt
        assert merged == prompt and type(merged) is str


def test_random_prompts_survive_config_yaml(tmp_path) -> None:
    draw = random.Random(1)
    for _ in range(20):
        prompts = ["".join(draw.choice(PIECES) for _ in range(draw.randrange(30))) for _ in range(3)]
        config = resolve(worded(*prompts))
        assert [config.prompt, config.negative_prompt, config.edit.source_prompt] == prompts
        assert round_trip(config, tmp_path / "config.yaml") == config


@pytest.mark.parametrize("text", ["${oc.env:HOME}", "???", "\\???", "${", "${a.b}", "\\${x}"])
def test_nothing_is_interpolated_anywhere(text, tmp_path) -> None:
    config = resolve(worded(text, text, text), None, [f"prior.name={text}"])
    assert {config.prompt, config.negative_prompt, config.edit.source_prompt, config.prior.name} == {text}
    assert round_trip(config, tmp_path / "config.yaml") == config


def test_settings_of_another_method_do_not_apply(tmp_path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("method: {name: dsd, steps: 5}\n")
    assert resolve({"prior": "sd21"}, str(path)).method == DSD(steps=5)
    assert resolve({"prior": "sd21", "method": "sds"}, str(path)).method == SDS()


def test_words_that_are_valid_only_together_are_taken_together() -> None:
    config = resolve(
        {}, None, ["method.timesteps.low=[0.3, 0.3]", "method.timesteps.high=[0.4, 0.4]", "steps=9"]
    )
    assert config.method.timesteps.range(0.5) == (0.3, 0.4) and config.steps == 9
    told = message({}, words=["timestep.low=[0.99, 0.99]", "steps=9"])
    assert told.startswith("overrides: timesteps: ")


def test_aliases_name_the_same_settings() -> None:
    asked = ["guidance.scale=4", "timestep.low=[0.5, 0.2]", "inversion.steps=3", "backgrounds.grey=[0.1, 1]"]
    config = resolve({}, None, asked)
    assert (config.method.guidance, config.method.timesteps.low) == (4.0, (0.5, 0.2))
    assert plain(config.method)["inversion"]["steps"] == 3 and config.backgrounds.gray == (0.1, 1.0)


@pytest.mark.parametrize(
    "text", ["a: &x [1]\nb: *x", "a: " + "[" * 900, "a: 2001-13-45", "a: " + "9" * 5000, "? [1]\n: 2"]
)
def test_hostile_yaml_is_one_clear_line(tmp_path, text) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    assert "broken.yaml" in message({}, str(path))


def test_an_alias_bomb_is_refused_at_once() -> None:
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
    with pytest.raises(ValueError, match="aliases"):
        parse_yaml(bomb)
