"""ImageReward on tiny random weights under its authors' names, against the arithmetic written out."""

import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tiny import make_clip

from splatdistill.errors import UserError
from splatdistill.priors.clip import Scorer
from splatdistill.priors.imagereward import MEAN, STD, ImageReward, load_judge
from splatdistill.priors.networks import CLIP

WIDTH, INNER, PATCH, SIDE, LAYERS, LONGEST = 128, 32, 8, 32, 2, 40
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "mushroom", "dog"]


def pair(name: str, outputs: int, inputs: int) -> dict[str, torch.Tensor]:
    return {f"{name}.weight": 0.3 * torch.randn(outputs, inputs), f"{name}.bias": 0.1 * torch.randn(outputs)}


def norm(name: str) -> dict[str, torch.Tensor]:
    return {f"{name}.weight": 1.0 + 0.1 * torch.randn(WIDTH), f"{name}.bias": 0.1 * torch.randn(WIDTH)}


def weights() -> dict[str, torch.Tensor]:
    """Return random weights of every name that the published file has, of few and narrow layers."""
    torch.manual_seed(0)
    seen, read = "blip.visual_encoder", "blip.text_encoder"
    state = {
        f"{seen}.cls_token": torch.randn(1, 1, WIDTH),
        f"{seen}.pos_embed": torch.randn(1, 1 + (SIDE // PATCH) ** 2, WIDTH),
        f"{seen}.patch_embed.proj.weight": 0.1 * torch.randn(WIDTH, 3, PATCH, PATCH),
        f"{seen}.patch_embed.proj.bias": torch.randn(WIDTH),
        f"{read}.embeddings.position_ids": torch.arange(LONGEST)[None],
        f"{read}.embeddings.word_embeddings.weight": torch.randn(len(WORDS), WIDTH),
        f"{read}.embeddings.position_embeddings.weight": torch.randn(LONGEST, WIDTH),
        **norm(f"{seen}.norm"),
        **norm(f"{read}.embeddings.LayerNorm"),
        **pair("blip.vision_proj", 4, WIDTH),
        **pair("blip.text_proj", 4, WIDTH),
    }
    for i in range(LAYERS):
        block, layer = f"{seen}.blocks.{i}", f"{read}.encoder.layer.{i}"
        state |= norm(f"{block}.norm1") | norm(f"{block}.norm2") | norm(f"{layer}.output.LayerNorm")
        state |= pair(f"{block}.attn.qkv", 3 * WIDTH, WIDTH) | pair(f"{block}.attn.proj", WIDTH, WIDTH)
        state |= pair(f"{block}.mlp.fc1", INNER, WIDTH) | pair(f"{block}.mlp.fc2", WIDTH, INNER)
        for attention in ("attention", "crossattention"):
            for kind in ("query", "key", "value"):
                state |= pair(f"{layer}.{attention}.self.{kind}", WIDTH, WIDTH)
            state |= pair(f"{layer}.{attention}.output.dense", WIDTH, WIDTH)
            state |= norm(f"{layer}.{attention}.output.LayerNorm")
        state |= pair(f"{layer}.intermediate.dense", INNER, WIDTH) | pair(
            f"{layer}.output.dense", WIDTH, INNER
        )
    for place, (outputs, inputs) in {0: (10, WIDTH), 2: (8, 10), 4: (6, 8), 6: (4, 6), 7: (1, 4)}.items():
        state |= pair(f"mlp.layers.{place}", outputs, inputs)
    return state


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imagereward")
    save_file(weights(), folder / "ImageReward.safetensors")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return folder / "ImageReward.safetensors"


def linear(x: torch.Tensor, state: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    return x @ state[f"{name}.weight"].mT + state[f"{name}.bias"]


def normed(x: torch.Tensor, state: dict[str, torch.Tensor], name: str, eps: float) -> torch.Tensor:
    return F.layer_norm(x, (WIDTH,), state[f"{name}.weight"], state[f"{name}.bias"], eps)


def attended(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return softmax(q k / sqrt(64)) v of two heads of 64 numbers; all [L,128]."""
    query, keys, values = (x.unflatten(1, (2, 64)).transpose(0, 1) for x in (query, keys, values))
    return ((query @ keys.mT / 8.0).softmax(-1) @ values).transpose(0, 1).flatten(1)


def by_hand(state: dict[str, torch.Tensor], picture: torch.Tensor, ids: list[int]) -> float:
    """Return the score of one picture [3,S,S] and the tokens of a text, as the paper's code computes it."""
    mean, std = torch.tensor(CLIP)
    patches = (
        ((picture - mean[:, None, None]) / std[:, None, None]).unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH)
    )
    patches = patches.permute(1, 2, 0, 3, 4).flatten(2).flatten(0, 1)
    seen, read = "blip.visual_encoder", "blip.text_encoder"
    first = state[f"{seen}.patch_embed.proj.weight"].flatten(1)
    x = torch.cat(
        [state[f"{seen}.cls_token"][0], patches @ first.mT + state[f"{seen}.patch_embed.proj.bias"]]
    )
    x = x + state[f"{seen}.pos_embed"][0]
    for i in range(LAYERS):
        block = f"{seen}.blocks.{i}"
        q, k, v = linear(normed(x, state, f"{block}.norm1", 1e-6), state, f"{block}.attn.qkv").chunk(3, 1)
        x = x + linear(attended(q, k, v), state, f"{block}.attn.proj")
        inner = F.gelu(linear(normed(x, state, f"{block}.norm2", 1e-6), state, f"{block}.mlp.fc1"))
        x = x + linear(inner, state, f"{block}.mlp.fc2")
    x = normed(x, state, f"{seen}.norm", 1e-6)
    words, places = (state[f"{read}.embeddings.{kind}_embeddings.weight"] for kind in ("word", "position"))
    y = normed(words[ids] + places[: len(ids)], state, f"{read}.embeddings.LayerNorm", 1e-12)
    for i in range(LAYERS):
        layer = f"{read}.encoder.layer.{i}"
        for name, source in (("attention", y), ("crossattention", x)):
            place = f"{layer}.{name}"
            source = y if name == "attention" else source
            q = linear(y, state, f"{place}.self.query")
            k, v = (linear(source, state, f"{place}.self.{kind}") for kind in ("key", "value"))
            out = linear(attended(q, k, v), state, f"{place}.output.dense")
            y = normed(out + y, state, f"{place}.output.LayerNorm", 1e-12)
        out = linear(F.gelu(linear(y, state, f"{layer}.intermediate.dense")), state, f"{layer}.output.dense")
        y = normed(out + y, state, f"{layer}.output.LayerNorm", 1e-12)
    score = y[:1]
    for place in (0, 2, 4, 6, 7):
        score = linear(score, state, f"mlp.layers.{place}")
    return (score.item() - MEAN) / STD


def test_a_score_is_the_authors_arithmetic(file: Path) -> None:
    model, state = load_judge(str(file)), load_file(file)
    assert isinstance(model, ImageReward) and model.size == SIDE
    pictures = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    found = model.liking(pictures, "a red dog").tolist()
    ids = [WORDS.index(word) for word in ("[CLS]", "a", "red", "dog", "[SEP]")]
    assert found == pytest.approx([by_hand(state, picture, ids) for picture in pictures], rel=1e-3, abs=1e-4)
    assert found[0] != found[1]
    assert model.liking(pictures, "a mushroom").tolist() != found


def test_pictures_of_another_size_are_resized_and_a_long_text_is_cut(file: Path) -> None:
    model = load_judge(str(file))
    gray = torch.full((1, 3, 8, 8), 0.5)
    wide = torch.full((1, 3, SIDE, SIDE), 0.5)
    torch.testing.assert_close(model.liking(gray, "a dog"), model.liking(wide, "a dog"))
    assert model.liking(gray, "a red dog " * 30).isfinite().all()


def test_a_file_without_a_tokenizer_or_some_weights_is_one_line(file: Path, tmp_path: Path) -> None:
    shutil.copy(file, tmp_path)
    with pytest.raises(UserError, match="bert-base-uncased") as caught:
        load_judge(str(tmp_path / file.name))
    assert "\n" not in str(caught.value)
    shutil.copy(file.parent / "vocab.txt", tmp_path)
    state = load_file(file)
    del state["blip.visual_encoder.norm.weight"]
    save_file(state, tmp_path / file.name)
    with pytest.raises(UserError, match="cannot load") as caught:
        load_judge(str(tmp_path / file.name))
    assert "\n" not in str(caught.value)


def test_other_models_of_preferences_are_clips(tmp_path: Path) -> None:
    assert isinstance(load_judge(str(make_clip(tmp_path))), Scorer)
