"""LoRA files on tiny random pipelines: both namings, merged as by hand; foreign files in one line."""

# diffusers' annotations are narrower than what they take
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

import json
import pickle

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file
from tiny import SMALL, make_pipeline

from splatdistill import edit, refine, sample2d, train
from splatdistill.config.load import load, resolve
from splatdistill.errors import UserError
from splatdistill.folder import CONFIG
from splatdistill.priors import load_prior
from splatdistill.priors.base import Prior, cfg
from splatdistill.priors.lora import LoraFile, merge, taught
from splatdistill.priors.view_transformer import ViewTransformer

RANK = 3
ON_UNET = ("to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2", "proj_in", "conv1", "linear_1")
ON_TEXT = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_pipeline(tmp_path_factory.mktemp("lora"), "AutoencoderTiny")


@pytest.fixture(scope="module")
def plain(folder):
    return load_prior(folder, dtype=torch.float32)


def factors(network, endings, rank=RANK, seed=0):
    """Return random factors (A, B) for each module whose name ends so."""
    rng = torch.Generator().manual_seed(seed)
    found = {}
    for name, module in network.named_modules():
        if name.endswith(endings):
            out, *into = module.weight.shape
            down = 0.3 * torch.randn(rank, *into, generator=rng)
            found[name] = down, 0.3 * torch.randn(out, rank, *[1] * (len(into) - 1), generator=rng)
    return found


def by_hand(network, pairs, scale):
    """Return the weights that a network has with these factors merged."""
    weights = {name: p.clone() for name, p in network.named_parameters()}
    for name, (down, up) in pairs.items():
        product = up.flatten(1) @ down.flatten(1)
        weights[f"{name}.weight"] += scale * product.view(weights[f"{name}.weight"].shape)
    return weights


def kohya(unet_pairs, text_pairs, alpha):
    state = {}
    for prefix, pairs in (("lora_unet_", unet_pairs), ("lora_te_text_model_", text_pairs)):
        for name, (down, up) in pairs.items():
            stem = prefix + name.replace(".", "_")
            state |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
            state[f"{stem}.alpha"] = torch.tensor(alpha)
    return state


def diffusers(unet_pairs, text_pairs):
    state = {}
    for prefix, pairs in (("unet.", unet_pairs), ("text_encoder.text_model.", text_pairs)):
        for name, (down, up) in pairs.items():
            state |= {f"{prefix}{name}.lora_A.weight": down, f"{prefix}{name}.lora_B.weight": up}
    return state


@pytest.fixture(scope="module")
def pairs(plain):
    return factors(plain.unet, ON_UNET), factors(plain.text_encoder, ON_TEXT)


@pytest.fixture(scope="module")
def style(pairs, tmp_path_factory):
    """Write a file of diffusers' naming that says what it taught."""
    path = tmp_path_factory.mktemp("style") / "style.safetensors"
    save_file(diffusers(*pairs), path, {"modelspec.trigger_phrase": "a Gizmo, red"})
    return path


@pytest.mark.parametrize("naming", ["kohya", "diffusers"])
def test_a_merged_lora_is_the_product_added_by_hand(naming, folder, plain, pairs, tmp_path):
    path = tmp_path / "lora.safetensors"
    save_file(kohya(*pairs, alpha=1.5) if naming == "kohya" else diffusers(*pairs), path)
    factor = 0.7 * (1.5 / RANK if naming == "kohya" else 1.0)
    changed = load_prior(folder, dtype=torch.float32, lora=[f"{path}:0.7"])
    for network, before, own in zip(
        (changed.unet, changed.text_encoder), (plain.unet, plain.text_encoder), pairs, strict=True
    ):
        expected = by_hand(before, own, factor)
        assert {name for name, _ in network.named_parameters()} == set(expected)  # no adapter is left
        for name, p in network.named_parameters():
            torch.testing.assert_close(p, expected[name], atol=1e-5, rtol=0)
        assert not any(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("naming", ["kohya", "diffusers"])
def test_predictions_are_those_of_the_pipeline_with_the_same_file(naming, folder, pairs, tmp_path):
    path = tmp_path / "lora.safetensors"
    save_file(kohya(*pairs, alpha=1.5) if naming == "kohya" else diffusers(*pairs), path)
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.load_lora_weights(path)
    prior = load_prior(folder, dtype=torch.float32, lora=[str(path)])
    text, null = pipeline.encode_prompt(["a red mushroom"], "cpu", 1, True)
    torch.testing.assert_close(prior.embed(["a red mushroom"]), text, atol=1e-5, rtol=1e-4)
    z_t, t = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([300])
    ours = prior.predict(z_t, t, cfg(null, text, 7.5))[1]
    with torch.no_grad():
        theirs = pipeline.unet(z_t, t, encoder_hidden_states=text).sample
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_peft_metadata_gives_the_alpha(folder, plain, pairs, tmp_path):
    path = tmp_path / "lora.safetensors"
    told = {"unet.r": RANK, "unet.lora_alpha": 6, "unet.target_modules": list(ON_UNET)}
    save_file(diffusers(pairs[0], {}), path, {"lora_adapter_metadata": json.dumps(told)})
    changed = load_prior(folder, dtype=torch.float32, lora=[str(path)])
    expected = by_hand(plain.unet, pairs[0], 6 / RANK)
    for name, p in changed.unet.named_parameters():
        torch.testing.assert_close(p, expected[name], atol=1e-5, rtol=0)


def test_several_files_add_up(folder, plain, pairs, tmp_path):
    others = factors(plain.unet, ON_UNET, rank=2, seed=1)
    files = [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
    save_file(diffusers(pairs[0], {}), files[0])
    save_file(kohya(others, {}, alpha=2.0), files[1])
    changed = load_prior(folder, dtype=torch.float32, lora=[str(files[0]), f"{files[1]}:-0.5"])
    expected = by_hand(plain.unet, pairs[0], 1.0)
    twice = {name: expected[f"{name}.weight"] for name in others}
    for name, (down, up) in others.items():
        twice[name] = twice[name] - 0.5 * (up.flatten(1) @ down.flatten(1)).view(twice[name].shape)
        torch.testing.assert_close(changed.unet.get_parameter(f"{name}.weight"), twice[name])


def test_a_transformer_takes_a_lora_under_its_own_prefix(tmp_path):
    sizes = {"outer_width": 8, "outer_layers": 2, "width": 16, "layers": 1, "head": 4, "told": 8}
    network = ViewTransformer(4, 4, 8, **sizes, cross_attention_dim=8).requires_grad_(False)
    own = factors(network, ("inner.0.enter", "predict"))
    state = {f"transformer.{name}.lora_A.weight": down for name, (down, _) in own.items()}
    state |= {f"transformer.{name}.lora_B.weight": up for name, (_, up) in own.items()}
    save_file(state, tmp_path / "lora.safetensors")
    expected = by_hand(network, own, 0.5)
    merge(LoraFile(tmp_path / "lora.safetensors", 0.5), network, None, "real")
    for name, p in network.named_parameters():
        torch.testing.assert_close(p, expected[name], atol=1e-5, rtol=0)


def foreign_files(unet, folder):
    """Yield files that are no LoRA of a UNet, and a word of the line for each."""
    name, (down, up) = next(iter(factors(unet, ("to_q",)).items()))

    def file(title, state):
        save_file(state, folder / f"{title}.safetensors")
        return folder / f"{title}.safetensors"

    stem = f"unet.{name}"
    yield file("names", {"unet.nowhere.lora_A.weight": down, "unet.nowhere.lora_B.weight": up}), "nowhere"
    wide = torch.zeros(RANK, 320)
    yield file("sizes", {f"{stem}.lora_A.weight": wide, f"{stem}.lora_B.weight": up}), "another model"
    yield file("ranks", {f"{stem}.lora_A.weight": down[:2], f"{stem}.lora_B.weight": up}), "ranks 2 and 3"
    yield file("half", {f"{stem}.lora_A.weight": down}), "no LoRA"
    yield file("other", {"blocks.0.weight": down}), "no LoRA"
    yield file("sdxl", {"text_encoder_2.x.lora_A.weight": down}), "no LoRA"
    yield file("kohya", {"lora_unet_nothing.lora_down.weight": down}), "no LoRA"
    yield file("nan", {f"{stem}.lora_A.weight": down * torch.nan, f"{stem}.lora_B.weight": up}), "finite"
    dora = {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}
    yield file("dora", dora | {f"{stem}.lora_magnitude_vector.weight": up[:, 0].clone()}), "DoRA"
    yield file("empty", {}), "no weights"
    (folder / "pickle.safetensors").write_bytes(pickle.dumps({"a": 1}))
    yield folder / "pickle.safetensors", "never from a pickle"
    (folder / "cut.safetensors").write_bytes((folder / "names.safetensors").read_bytes()[:-40])
    yield folder / "cut.safetensors", "damaged"


def test_a_foreign_file_is_one_line_and_nothing_is_written(folder, plain, tmp_path, capsys):
    for path, word in foreign_files(plain.unet, tmp_path):
        out = tmp_path / "out"
        words = ["--prompt", "a dog", "--prior", str(folder), "--lora", str(path), "--out", str(out), *SMALL]
        assert train.main(words) == 2, path
        said = [line for line in capsys.readouterr().err.splitlines() if line]
        assert len(said) == 1 and word in said[0] and str(path) in said[0], said
        assert not out.exists()


@pytest.mark.parametrize("text", ["missing.safetensors", "{}:much", "{}:nan", "missing.safetensors:0.5"])
def test_a_file_that_is_not_there_or_a_wrong_scale_is_one_line(text, style):
    with pytest.raises(UserError, match=r"expected FILE|there is no file"):
        LoraFile.parse(text.format(style))


def test_a_prior_that_takes_none_says_so(monkeypatch, folder, style):
    class Other(Prior):
        pass

    monkeypatch.setattr("splatdistill.priors.loading.reader_of", lambda folder: Other)
    with pytest.raises(UserError, match="takes no LoRA"):
        load_prior(folder, lora=[str(style)])


def test_a_file_names_the_phrases_that_it_taught(style):
    assert taught([f"{style}:0.5"]) == ("a Gizmo", "red")


def test_a_teacher_of_views_reads_what_two_files_taught_and_refuses_others(views, style, tmp_path, capsys):
    network, files = load_prior(views, dtype=torch.float32), []
    for number, phrase in enumerate(("a gizmo", "a clockwork owl")):
        files.append(tmp_path / f"{number}.safetensors")
        own = factors(network.unet, ("inner.0.enter", "embed_text"), seed=number)
        on_text = factors(network.text_encoder, ON_TEXT, seed=number)
        save_file(diffusers(own, on_text), files[-1], {"modelspec.trigger_phrase": phrase})
    both = [word for file in files for word in ("--lora", str(file))]
    words = [
        "--prior",
        str(views),
        "--steps",
        "2",
        "--method",
        "sds",
        "views.count=4",
        *SMALL[:1],
        *SMALL[2:],
    ]
    prompt = ["--prompt", "a red gizmo on a clockwork owl", "--out", str(tmp_path / "run")]
    assert train.main([*prompt, *words, *both]) == 0
    assert "taking" not in capsys.readouterr().err
    assert train.main([*prompt[:3], str(tmp_path / "none"), *words]) == 2  # without them it names nothing
    assert train.main([*prompt[:3], str(tmp_path / "other"), *words, "--lora", str(style)]) == 2
    first, second = [line for line in capsys.readouterr().err.splitlines() if line]
    assert "names nothing" in first and "is for another model" in second
    assert not (tmp_path / "other").exists()


def test_a_run_records_its_lora_and_resumes_only_with_the_same(folder, style, pairs, tmp_path, capsys):
    out, lora = tmp_path / "run", tmp_path / "own.safetensors"
    lora.write_bytes(style.read_bytes())
    words = ["--prompt", "a dog", "--prior", str(folder), "--lora", f"{lora}:0.5", "--steps", "2"]
    words += ["--method", "sds"]
    assert train.main([*words, "--out", str(out), *SMALL]) == 0
    told = load(out / CONFIG).prior
    assert told.lora == (f"{lora}:0.5",) and told.lora_sha256 == (LoraFile(lora).digest(),)
    again = resolve({}, str(out / CONFIG))
    assert again.prior == told
    save_file(diffusers(pairs[0], {}), lora)
    capsys.readouterr()
    assert train.main(["--resume", str(out), "--steps", "4"]) == 2
    assert "another file than this run was made with" in capsys.readouterr().err
    lora.write_bytes(style.read_bytes())
    assert train.main(["--resume", str(out), "--steps", "4"]) == 0


def test_edit_refine_and_sample2d_take_the_same_option(folder, style, tmp_path, monkeypatch):
    monkeypatch.setattr(sample2d, "DDIM_STEPS", 4)
    out = tmp_path / "flat"
    words = ["--prior", str(folder), "--lora", str(style), "--steps", "2", "--method", "sds"]
    assert sample2d.main(["--prompt", "a dog", "--count", "1", "--out", str(out), *words]) == 0
    run = tmp_path / "run"
    assert train.main(["--prompt", "a dog", "--out", str(run), *words, *SMALL]) == 0
    edited = ["--splat", str(run), "--target-prompt", "a red dog", "--out", str(tmp_path / "edited")]
    assert edit.main([*edited, *words, *SMALL]) == 0
    assert load(tmp_path / "edited" / CONFIG).prior.lora == (str(style),)
    refined = ["--splat", str(run), "--out", str(tmp_path / "refined")]
    assert refine.main([*refined, *words, *SMALL]) == 0
    assert load(tmp_path / "refined" / CONFIG).prior.lora == (str(style),)
