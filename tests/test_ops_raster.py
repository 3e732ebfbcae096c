"""The rasterizer: kernels against the float64 reference, the reference against gsplat and gradcheck."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from splatdistill.ops import native
from splatdistill.ops import raster as ops
from splatdistill.reference import raster as reference

needs_kernels = pytest.mark.skipif(not native.available(), reason="needs the native extension")

both_modules = pytest.mark.parametrize(
    "module", [pytest.param(ops, marks=needs_kernels), reference], ids=["ops", "reference"]
)

IMAGE_TOLERANCE = 1e-4  # absolute
GRADIENT_TOLERANCE = 1e-3  # of the norm
# a contribution within rounding of 1/255 or of the stop at 1e-4 may fall on either side in float32
FLIPPED_PIXELS = 2e-3  # fraction


@dataclass(frozen=True)
class Scene:
    means: Tensor
    quats: Tensor
    scales: Tensor
    opacities: Tensor
    sh: Tensor
    backgrounds: Tensor | None
    viewmats: Tensor
    Ks: Tensor
    width: int
    height: int
    sh_degree: int


def ball(count: int, width: int, height: int, views: int = 1, sh_degree: int = 0, seed: int = 0) -> Scene:
    """Return a ball of Gaussians of radius 1 and cameras at distance 3, each with its own background."""
    rng = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(count, 3, generator=rng), dim=-1)
    viewmats = []
    for view in range(views):
        c, s = math.cos(0.3 + 2.0 * view), math.sin(0.3 + 2.0 * view)
        viewmats.append([[c, s, 0.0, 0.0], [0.0, 0.0, -1.0, 0.1], [-s, c, 0.0, 3.0], [0.0, 0.0, 0.0, 1.0]])
    focal = 0.5 * width / math.tan(math.radians(25.0))
    K = [[focal, 0.0, 0.5 * width], [0.0, 0.9 * focal, 0.48 * height], [0.0, 0.0, 1.0]]
    return Scene(
        means=directions * torch.rand(count, 1, generator=rng) ** (1 / 3),
        quats=torch.randn(count, 4, generator=rng),
        scales=0.02 + 0.13 * torch.rand(count, 3, generator=rng) ** 2,
        opacities=0.1 + 0.85 * torch.rand(count, generator=rng),
        sh=torch.randn(count, (sh_degree + 1) ** 2, 3, generator=rng) * 0.4,
        backgrounds=torch.rand(views, 3, generator=rng),
        viewmats=torch.tensor(viewmats),
        Ks=torch.tensor(K).expand(views, 3, 3),
        width=width,
        height=height,
        sh_degree=sh_degree,
    )


LEAVES = ("means", "quats", "scales", "opacities", "sh", "backgrounds")
OUTPUTS = ("rgb", "alpha", "depth", "means2d", "radii")


def leaves_of(scene: Scene, dtype: torch.dtype) -> dict[str, Tensor]:
    tensors = {name: getattr(scene, name) for name in LEAVES if getattr(scene, name) is not None}
    return {name: x.to(dtype).clone().requires_grad_() for name, x in tensors.items()}


def draw(module, scene: Scene, leaves: dict[str, Tensor], **settings) -> dict[str, Tensor]:
    dtype = leaves["means"].dtype
    gaussians = [leaves[name] for name in LEAVES[:5]]
    cameras = (scene.viewmats.to(dtype), scene.Ks.to(dtype), scene.width, scene.height)
    rest = (leaves.get("backgrounds"), scene.sh_degree, reference.Limits(**settings))
    outputs = module.rasterize(*gaussians, *cameras, *rest)
    return dict(zip(OUTPUTS, outputs))


def run(module, scene: Scene, dtype=torch.float32, images=("rgb", "alpha", "depth"), **settings):
    """Return outputs, and gradients of a random linear function of the images."""
    leaves = leaves_of(scene, dtype)
    out = draw(module, scene, leaves, **settings)
    out["means2d"].retain_grad()
    rng = torch.Generator().manual_seed(1)
    cotangents = {name: torch.randn(out[name].shape, generator=rng).to(dtype) for name in OUTPUTS[:3]}
    torch.autograd.backward([out[name] for name in images], [cotangents[name] for name in images])
    tensors = leaves | {"means2d": out["means2d"]}
    gradients = {name: torch.zeros_like(x) if x.grad is None else x.grad for name, x in tensors.items()}
    return {name: x.detach() for name, x in out.items()}, gradients


def assert_same(scene: Scene, **settings) -> None:
    """Kernels in float32 and the reference in float64 agree: images, projections and every gradient."""
    outputs, gradients = run(ops, scene, **settings)
    expected, expected_gradients = run(reference, scene, torch.float64, **settings)
    for name in ("rgb", "alpha", "depth"):
        wrong = (outputs[name] - expected[name]).abs() > IMAGE_TOLERANCE
        assert wrong.float().mean() <= FLIPPED_PIXELS, name
    torch.testing.assert_close(outputs["means2d"].double(), expected["means2d"], atol=1e-3, rtol=1e-5)
    assert ((outputs["radii"] - expected["radii"]).abs() <= 1).all()
    for name, gradient in gradients.items():
        want = expected_gradients[name]
        error = (gradient - want).norm()
        assert error <= GRADIENT_TOLERANCE * want.norm() + 1e-9, f"{name}: {error} of {want.norm()}"


@needs_kernels
@pytest.mark.parametrize("sh_degree", [0, 1, 2, 3])
def test_images_and_gradients_equal_the_reference_for_every_sh_degree(sh_degree):
    assert_same(ball(300, 48, 48, views=2, sh_degree=sh_degree))


@needs_kernels
@pytest.mark.parametrize("size", [(1, 1), (5, 3), (16, 16), (17, 33), (50, 31)])
def test_images_of_any_size_equal_the_reference(size):
    assert_same(ball(200, *size, views=3))


@needs_kernels
def test_images_without_background_equal_the_reference():
    assert_same(replace(ball(200, 40, 40), backgrounds=None))


@needs_kernels
def test_a_crowd_that_stops_pixels_early_equals_the_reference():
    scene = ball(3000, 40, 40)
    assert_same(replace(scene, opacities=scene.opacities.clamp_min(0.6)))


@needs_kernels
@pytest.mark.parametrize("image", ["rgb", "alpha", "depth"])
def test_a_loss_on_one_image_only_equals_the_reference(image):
    assert_same(ball(150, 32, 32), images=(image,))


@needs_kernels
def test_partial_sh_bands_leave_the_other_coefficients_without_gradient():
    scene = replace(ball(100, 32, 32, sh_degree=3), sh_degree=1)
    assert_same(scene)
    _, gradients = run(ops, scene)
    assert (gradients["sh"][:, 4:] == 0).all()


@needs_kernels
def test_gaussians_around_and_behind_the_camera_equal_the_reference():
    scene = ball(400, 48, 48, views=2, sh_degree=1)
    assert_same(replace(scene, means=scene.means * 4.0, scales=scene.scales * 2.0), near=0.2, far=5.0)


@needs_kernels
def test_radius_clip_and_eps2d_equal_the_reference():
    assert_same(ball(300, 48, 48), radius_clip=3.0, eps2d=0.1)


@needs_kernels
def test_thin_and_wide_gaussians_equal_the_reference():
    scene = ball(60, 70, 50)
    scales = torch.tensor([1.5, 0.004, 0.03]).expand(60, 3)
    assert_same(replace(scene, scales=scales, opacities=scene.opacities * 0.3))


@needs_kernels
def test_opacity_one_is_clamped_as_in_the_reference():
    scene = ball(50, 32, 32)
    assert_same(replace(scene, opacities=torch.ones(50)))


@needs_kernels
def test_no_gaussians_give_the_background():
    scene = ball(0, 20, 10, views=2)
    outputs, gradients = run(ops, scene)
    assert scene.backgrounds is not None
    assert (outputs["rgb"] == scene.backgrounds[:, None, None]).all()
    assert (outputs["alpha"] == 0).all() and (outputs["depth"] == 0).all()
    assert outputs["means2d"].shape == (2, 0, 2) and gradients["sh"].shape == (0, 1, 3)


@needs_kernels
def test_one_gaussian_equals_the_reference():
    assert_same(ball(1, 33, 17, sh_degree=1))


@needs_kernels
def test_a_scene_out_of_sight_gives_black_and_zero_gradients():
    scene = replace(ball(50, 20, 20), backgrounds=None)
    outputs, gradients = run(ops, replace(scene, means=scene.means + torch.tensor([0.0, 0.0, 1e3])))
    assert (outputs["rgb"] == 0).all() and (outputs["radii"] == 0).all()
    assert all((gradient == 0).all() for gradient in gradients.values())


@needs_kernels
def test_results_are_bit_identical_for_one_and_two_threads():
    scene = ball(3000, 100, 80, views=3, sh_degree=2)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            outputs, gradients = run(ops, scene)
            results.append([*outputs.values(), *gradients.values()])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, two) for one, two in zip(*results))


BAD = {
    "nan mean": ("means", math.nan),
    "infinite mean": ("means", math.inf),
    "huge mean": ("means", 1e30),
    "nan quaternion": ("quats", math.nan),
    "zero quaternion": ("quats", 0.0),
    "nan scale": ("scales", math.nan),
    "infinite scale": ("scales", math.inf),
    "overflowing scale": ("scales", 1e25),
    "nan opacity": ("opacities", math.nan),
    "infinite opacity": ("opacities", math.inf),
    "nan color": ("sh", math.nan),
    "infinite color": ("sh", math.inf),
}


@both_modules
@pytest.mark.parametrize("kind", BAD)
def test_a_broken_gaussian_is_culled_and_the_others_do_not_notice(module, kind):
    scene, broken = ball(30, 24, 24, views=2, sh_degree=1), 7
    name, value = BAD[kind]
    tensor = getattr(scene, name).clone()
    tensor[broken] = value
    rest = [i for i in range(30) if i != broken]
    without = replace(scene, **{key: getattr(scene, key)[rest] for key in LEAVES[:5]})
    outputs, gradients = run(module, replace(scene, **{name: tensor}))
    expected, expected_gradients = run(module, without)
    assert (outputs["radii"][:, broken] == 0).all()
    assert torch.equal(outputs["rgb"], expected["rgb"]) and torch.equal(outputs["depth"], expected["depth"])
    for key in LEAVES[:5]:
        assert (gradients[key][broken] == 0).all(), key
        torch.testing.assert_close(gradients[key][rest], expected_gradients[key], rtol=1e-5, atol=1e-5)


@needs_kernels
@pytest.mark.parametrize("scale", [1e-12, 1e-3, 10.0, 1e4, 1e12, 1e18])
def test_extreme_scales_give_finite_images_and_gradients(scale):
    scene = ball(200, 37, 29, sh_degree=1)
    outputs, gradients = run(ops, replace(scene, scales=torch.full((200, 3), scale)))
    assert all(x.isfinite().all() for x in [outputs["rgb"], outputs["alpha"], outputs["depth"]])
    assert all(x.isfinite().all() for x in gradients.values())


@needs_kernels
def test_gradient_of_means2d_is_retained_for_densification():
    scene = ball(100, 32, 32, views=2)
    out = draw(ops, scene, leaves_of(scene, torch.float32))
    out["means2d"].retain_grad()
    out["rgb"].sum().backward()
    gradient = out["means2d"].grad
    assert gradient is not None and gradient.shape == (2, 100, 2)
    assert (gradient[out["radii"][..., 0] > 0] != 0).any()
    assert not out["radii"].requires_grad and out["radii"].dtype == torch.int32


def test_float64_inputs_are_drawn_by_the_reference():
    scene = ball(20, 16, 16)
    outputs, _ = run(ops, scene, torch.float64)
    expected, _ = run(reference, scene, torch.float64)
    assert torch.equal(outputs["rgb"], expected["rgb"])


@needs_kernels
def test_inputs_need_not_be_contiguous():
    scene = ball(40, 24, 24)
    strided = {key: torch.stack([getattr(scene, key)] * 2, dim=-1)[..., 0] for key in LEAVES}
    assert torch.equal(run(ops, replace(scene, **strided))[0]["rgb"], run(ops, scene)[0]["rgb"])


def project_arguments(scene: Scene, leaves: dict[str, Tensor]) -> tuple:
    gaussians = [leaves[name] for name in LEAVES[:5]]
    settings = (scene.width, scene.height, scene.sh_degree, reference.Limits())
    dtype = leaves["means"].dtype
    return *gaussians, scene.viewmats.to(dtype), scene.Ks.to(dtype).contiguous(), *settings


@both_modules
def test_projection_equals_gsplat(module):
    torch_impl = pytest.importorskip("gsplat.cuda._torch_impl")
    scene = ball(500, 64, 48, views=3)
    scene = replace(scene, means=scene.means * 2.0)  # some beyond the image's edge
    leaves = leaves_of(scene, torch.float32)
    means2d, conics, depths, _, radii = module.project(*project_arguments(scene, leaves))
    covars, _ = torch_impl._quat_scale_to_covar_preci(scene.quats, scene.scales, compute_preci=False)
    _, means2d_g, depths_g, conics_g, _ = torch_impl._fully_fused_projection(
        scene.means, covars, scene.viewmats, scene.Ks, scene.width, scene.height
    )
    seen = (radii > 0).all(-1)
    assert seen.sum() > 300
    for ours, theirs in ((means2d, means2d_g), (conics, conics_g), (depths, depths_g)):
        torch.testing.assert_close(ours[seen], theirs[seen], rtol=1e-3, atol=1e-4)


@both_modules
@pytest.mark.parametrize("sh_degree", [0, 1, 2, 3])
def test_colors_and_their_gradients_equal_gsplat(module, sh_degree):
    torch_impl = pytest.importorskip("gsplat.cuda._torch_impl")
    scene = ball(200, 64, 64, views=2, sh_degree=sh_degree)
    leaves, leaves_g = leaves_of(scene, torch.float32), leaves_of(scene, torch.float32)
    _, _, _, colors, radii = module.project(*project_arguments(scene, leaves))
    assert (radii > 0).all()
    positions = torch.linalg.inv(scene.viewmats)[:, :3, 3]
    directions = leaves_g["means"][None] - positions[:, None]
    sh = leaves_g["sh"].expand(2, *leaves_g["sh"].shape)
    colors_g = torch.clamp_min(torch_impl._spherical_harmonics(sh_degree, directions, sh) + 0.5, 0.0)
    torch.testing.assert_close(colors, colors_g, rtol=1e-4, atol=1e-5)
    cotangent = torch.randn(colors.shape, generator=torch.Generator().manual_seed(2))
    for output in (colors, colors_g):
        torch.autograd.backward(output, cotangent)
    torch.testing.assert_close(leaves["sh"].grad, leaves_g["sh"].grad, rtol=1e-3, atol=1e-4)
    if sh_degree > 0:
        torch.testing.assert_close(leaves["means"].grad, leaves_g["means"].grad, rtol=1e-3, atol=1e-4)


def test_reference_passes_gradcheck():
    scene = ball(3, 5, 4, views=2, sh_degree=1)
    scene = replace(scene, scales=scene.scales + 0.2, opacities=scene.opacities * 0.9)
    leaves = leaves_of(scene, torch.float64)

    def images(*tensors):
        out = draw(reference, scene, dict(zip(LEAVES, tensors)))
        return out["rgb"], out["alpha"], out["depth"], out["means2d"]

    assert torch.autograd.gradcheck(images, tuple(leaves.values()), atol=1e-6)


@needs_kernels
def test_ops_pass_opcheck():
    scene = ball(40, 24, 20, views=2, sh_degree=1)
    arguments = project_arguments(scene, leaves_of(scene, torch.float32))
    torch.library.opcheck(ops.project, arguments)
    with torch.no_grad():
        means2d, conics, depths, colors, radii = ops.project(*arguments)
    leaves = [x.clone().requires_grad_() for x in (means2d, conics, colors, scene.opacities, depths)]
    backgrounds = torch.rand(2, 3, requires_grad=True)
    torch.library.opcheck(ops.rasterize_tiles, (*leaves, radii, backgrounds, scene.width, scene.height))


@needs_kernels
def test_wrong_shapes_are_refused_rather_than_read():
    scene = ball(10, 8, 8)
    leaves = leaves_of(scene, torch.float32)
    leaves["opacities"] = torch.rand(9)
    with pytest.raises(ValueError, match="shape"):
        draw(ops, scene, leaves)
    with pytest.raises(ValueError, match="sh_degree"):
        draw(ops, replace(scene, sh_degree=2), leaves_of(scene, torch.float32))


@pytest.mark.gpu
@pytest.mark.parametrize("sh_degree", [0, 3])
def test_gsplat_on_cuda_draws_the_same(sh_degree):
    import gsplat

    scene = ball(2000, 100, 76, views=2, sh_degree=sh_degree)
    ours, our_gradients = run(ops, scene)
    leaves = {name: x.detach().cuda().requires_grad_() for name, x in leaves_of(scene, torch.float32).items()}
    rgbd, alpha, info = gsplat.rasterization(
        leaves["means"], leaves["quats"], leaves["scales"], leaves["opacities"], leaves["sh"],
        scene.viewmats.cuda(), scene.Ks.cuda(), scene.width, scene.height, sh_degree=sh_degree,
        backgrounds=leaves["backgrounds"], render_mode="RGB+ED", packed=False,
    )  # fmt: skip
    info["means2d"].retain_grad()
    images = {"rgb": rgbd[..., :3], "alpha": alpha, "depth": rgbd[..., 3:]}
    rng = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(x.shape, generator=rng).cuda() for x in images.values()]
    torch.autograd.backward(list(images.values()), cotangents)
    for name, image in images.items():
        wrong = (image.detach().cpu() - ours[name]).abs() > 10 * IMAGE_TOLERANCE  # it has fast exponentials
        assert wrong.float().mean() <= FLIPPED_PIXELS, name
    assert ((info["radii"].cpu() - ours["radii"]).abs() <= 1).float().mean() > 0.999
    for name, tensor in (leaves | {"means2d": info["means2d"]}).items():
        assert tensor.grad is not None
        want = tensor.grad.cpu()
        assert (our_gradients[name] - want).norm() <= 1e-2 * want.norm(), name
