import numpy as np
import torch

from splatdistill.priors.patch_codec import PatchCodec
from splatdistill.teaching import decoder


def pictures(n: int = 24) -> torch.Tensor:
    """Smooth random pictures [n, 3, 32, 32] in [-1, 1]."""
    rng = torch.Generator().manual_seed(0)
    coarse = torch.rand(n, 3, 6, 6, generator=rng) * 2 - 1
    return torch.nn.functional.interpolate(coarse, (32, 32), mode="bicubic", align_corners=False).clamp(-1, 1)


def fitted(channels: int) -> PatchCodec:
    torch.manual_seed(0)
    codec = PatchCodec(latent_channels=channels, width=8, layers=1)
    codec.fit(pictures())
    return codec.requires_grad_(False)


def test_with_every_component_nothing_is_lost():
    codec, seen = fitted(192), pictures(4)
    back = codec.decode(codec.encode(seen).latents).sample
    torch.testing.assert_close(back, seen, atol=2e-3, rtol=0)


def test_more_components_lose_less_and_the_first_hold_most():
    seen = pictures()
    losses = []
    for channels in (4, 12, 24):
        codec = fitted(channels)
        losses.append((codec.decode(codec.encode(seen).latents).sample - seen).square().mean().item())
    assert losses[0] > 2 * losses[1] > 4 * losses[2]
    spread = fitted(24).encode(seen).latents.var((0, 2, 3))
    assert (spread[:-1] > 0.8 * spread[1:]).all()


def test_encoding_is_linear_so_its_gradient_is_the_same_everywhere():
    codec, seen = fitted(8), pictures(2)
    a, b = codec.encode(seen).latents
    middle = codec.encode(seen.mean(0, keepdim=True)).latents[0]
    torch.testing.assert_close(middle, (a + b) / 2, atol=1e-4, rtol=0)


def test_a_saved_codec_is_the_same(tmp_path):
    codec, seen = fitted(8), pictures(2)
    codec.save_pretrained(tmp_path)
    again = PatchCodec.from_pretrained(tmp_path)
    latents = codec.encode(seen).latents
    torch.testing.assert_close(again.encode(seen).latents, latents)
    torch.testing.assert_close(again.decode(latents).sample, codec.decode(latents, return_dict=False)[0])


def test_a_trained_decoder_mends_and_leaves_the_basis(tmp_path):
    codec = fitted(6).requires_grad_(True)
    seen = ((pictures(8).permute(0, 2, 3, 1) + 1) * 127.5).byte().numpy()
    np.savez(tmp_path / "pictures-0.npz", pictures=seen[:, None])
    before, basis = decoder.psnr(codec, seen), codec.basis.weight.clone()
    decoder.train_decoder(codec, [tmp_path / "pictures-0.npz"], 40, batch=8)
    assert decoder.psnr(codec, seen) > before + 0.1
    assert torch.equal(codec.basis.weight, basis)
