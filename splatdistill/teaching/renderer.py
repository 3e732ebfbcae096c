"""Rendering of meshes with moderngl on EGL: a GPU where there is one, else Mesa's llvmpipe."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from splatdistill.errors import UserError
from splatdistill.scene.cameras import Cameras
from splatdistill.teaching.meshes import TEXTURE, Mesh

SAMPLES = 4  # of a pixel
NEAR, FAR = 0.1, 20.0
ALPHA_TO_COVERAGE = 0x809E  # GL_SAMPLE_ALPHA_TO_COVERAGE: leaves and glass need no sorting

VERTEX = """
#version 330
uniform mat4 camera;
in vec3 position; in vec3 normal; in vec4 color; in vec2 uv; in float layer;
out vec3 p; out vec3 n; out vec4 base; out vec2 st; flat out float picture;
void main() {
    gl_Position = camera * vec4(position, 1.0);
    p = position; n = normal; base = color; st = uv; picture = layer;
}
"""
FRAGMENT = """
#version 330
uniform sampler2DArray pictures;
uniform vec3 eye; uniform vec3 lamp; uniform vec3 strengths;  // ambient, lamp, headlight
in vec3 p; in vec3 n; in vec4 base; in vec2 st; flat in float picture;
out vec4 seen;
void main() {
    vec4 color = base;
    if (picture >= 0.0) {
        vec4 t = texture(pictures, vec3(st, picture));
        color *= vec4(pow(t.rgb, vec3(2.2)), t.a);
    }
    vec3 to_eye = normalize(eye - p), m = normalize(n);
    float facing = dot(m, to_eye);
    if (facing < 0.0) m = -m;
    float light = dot(strengths, vec3(1.0, max(0.0, dot(m, lamp)), abs(facing)));
    vec3 lit = clamp(color.rgb * light, 0.0, 1.0);
    seen = vec4(mix(12.92 * lit, 1.055 * pow(lit, vec3(1.0 / 2.4)) - 0.055, step(0.0031308, lit)), color.a);
}
"""


@dataclass(frozen=True)
class Light:
    """A lamp fixed in the world and a weak light at the camera; linear strengths."""

    azimuth_deg: float = 40.0
    elevation_deg: float = 58.0
    ambient: float = 0.4
    lamp: float = 0.55
    head: float = 0.15

    @property
    def direction(self) -> tuple[float, float, float]:
        """The unit vector toward the lamp."""
        a, e = np.radians([self.azimuth_deg, self.elevation_deg])
        return (float(np.cos(e) * np.cos(a)), float(np.cos(e) * np.sin(a)), float(np.sin(e)))


class Renderer:
    """An off-screen OpenGL context for square images of one size, created when it first draws."""

    def __init__(self, size: int) -> None:
        self.size = size

    @cached_property
    def _context(self) -> tuple[Any, Any, Any, Any]:
        """Return the context, the program, and the framebuffers to draw into and to read from."""
        try:
            import moderngl  # pyright: ignore[reportMissingImports]  # only in the extra

            options: dict[str, Any] = {"standalone": True, "backend": "egl", "require": 330}
            gl: Any = moderngl.create_context(**options)
        except Exception as error:  # the binding raises bare exceptions of many kinds
            raise UserError(
                f"drawing the models needs moderngl and EGL ({error}); "
                "pip install 'splatdistill[teaching]', and on Debian apt-get install libegl1 libgl1-mesa-dri"
            ) from error
        size = (self.size, self.size)
        color = gl.renderbuffer(size, 4, samples=SAMPLES)
        drawn = gl.framebuffer([color], gl.depth_renderbuffer(size, samples=SAMPLES))
        resolved = gl.framebuffer([gl.renderbuffer(size, 4)])
        gl.enable(moderngl.DEPTH_TEST)
        gl.enable_direct(ALPHA_TO_COVERAGE)
        return gl, gl.program(VERTEX, FRAGMENT), drawn, resolved

    def draw(self, mesh: Mesh, cameras: Cameras, light: Light) -> np.ndarray:
        """Render images [V, S, S, 4] uint8 of a mesh, premultiplied by coverage; S is the cameras' size.

        Raises UserError where there is no OpenGL.
        """
        gl, program, drawn, resolved = self._context
        rows = (mesh.positions, mesh.normals, mesh.colors, mesh.uvs, mesh.layers[:, None])
        buffer = gl.buffer(np.concatenate(rows, 1).astype(np.float32).tobytes())
        names = ("position", "normal", "color", "uv", "layer")
        array = gl.vertex_array(program, [(buffer, "3f 3f 4f 2f 1f", *names)])
        layers = max(1, len(mesh.textures))
        data = mesh.textures.tobytes() or bytes(TEXTURE * TEXTURE * 4)
        pictures = gl.texture_array((TEXTURE, TEXTURE, layers), 4, data)
        pictures.build_mipmaps()
        pictures.use(0)
        program["lamp"].value = light.direction
        program["strengths"].value = (light.ambient, light.lamp, light.head)
        images = np.empty((len(cameras), self.size, self.size, 4), np.uint8)
        projected, eyes = projections(cameras), cameras.positions.numpy()
        for i in range(len(cameras)):
            drawn.use()
            drawn.clear(0.0, 0.0, 0.0, 0.0)
            program["camera"].write(projected[i].T.astype(np.float32).tobytes())
            program["eye"].value = tuple(eyes[i].tolist())
            array.render()
            gl.copy_framebuffer(resolved, drawn)
            read = np.frombuffer(resolved.read(components=4), np.uint8)
            images[i] = read.reshape(self.size, self.size, 4)[::-1]
        for thing in (array, buffer, pictures):
            thing.release()
        return images


def projections(cameras: Cameras) -> np.ndarray:
    """Return matrices from the world to OpenGL's clip space, [V, 4, 4]."""
    viewmats, Ks = cameras.viewmats.double().numpy(), cameras.Ks.double().numpy()
    clip = np.zeros((len(cameras), 4, 4))
    clip[:, 0, 0] = 2 * Ks[:, 0, 0] / cameras.width
    clip[:, 0, 2] = 2 * Ks[:, 0, 2] / cameras.width - 1
    clip[:, 1, 1] = -2 * Ks[:, 1, 1] / cameras.height
    clip[:, 1, 2] = 1 - 2 * Ks[:, 1, 2] / cameras.height
    clip[:, 2, 2], clip[:, 2, 3] = (FAR + NEAR) / (FAR - NEAR), -2 * FAR * NEAR / (FAR - NEAR)
    clip[:, 3, 2] = 1.0
    return clip @ viewmats
