// Draws the splats of this page on a canvas, as the rasterizer does: EWA splatting (Zwicker et al. 2001; 3D
// Gaussian Splatting, 2308.04079), sorted back to front. Drag turns, the wheel or two fingers zoom.
"use strict";

const VERTEX = `#version 300 es
precision highp float;
precision highp sampler2D;
uniform sampler2D splats;  // four texels each: mean and opacity; covariance (six, upper triangle); color
uniform mat4 view;         // world to camera: x right, y down, z forward
uniform vec2 size;         // of the canvas in pixels
uniform float focal;       // in pixels
in vec2 corner;
in uint index;
out vec2 offset;           // from the center, in standard deviations
out vec4 color;

vec4 texel(int k) {
  int i = int(index);
  return texelFetch(splats, ivec2((i % 512) * 4 + k, i / 512), 0);
}

void main() {
  vec4 a = texel(0), b = texel(1), c = texel(2);
  gl_Position = vec4(2.0, 2.0, 2.0, 1.0);  // outside, unless there is something to draw
  vec3 p = (view * vec4(a.xyz, 1.0)).xyz;
  if (p.z < 0.01 || a.w < 1.0 / 255.0) return;
  vec2 limit = 0.65 * size / focal;  // beyond, the local affine approximation would explode
  vec2 t = clamp(p.xy / p.z, -limit, limit);
  float f = focal / p.z;
  mat3 J = mat3(f, 0.0, 0.0, 0.0, f, 0.0, -f * t.x, -f * t.y, 0.0);
  mat3 T = J * mat3(view);
  mat3 S = mat3(b.x, b.y, b.z, b.y, b.w, c.x, b.z, c.x, c.y);
  mat3 C = T * S * transpose(T);
  float xx = C[0][0] + 0.3, xy = C[0][1], yy = C[1][1] + 0.3;
  float middle = 0.5 * (xx + yy), radius = length(vec2(0.5 * (xx - yy), xy));
  float longer = middle + radius, shorter = max(middle - radius, 1e-3);
  vec2 axis = abs(xy) < 1e-9 ? (xx < yy ? vec2(0.0, 1.0) : vec2(1.0, 0.0)) : normalize(vec2(xy, longer - xx));
  offset = corner * sqrt(2.0 * log(255.0 * a.w));  // where alpha falls below 1/255
  vec2 pixel = f * p.xy + axis * offset.x * sqrt(longer) + vec2(-axis.y, axis.x) * offset.y * sqrt(shorter);
  gl_Position = vec4(2.0 * pixel / size * vec2(1.0, -1.0), 0.0, 1.0);
  color = vec4(texel(3).rgb, a.w);
}`;

const FRAGMENT = `#version 300 es
precision highp float;
in vec2 offset;
in vec4 color;
out vec4 result;

void main() {
  float alpha = min(color.a * exp(-0.5 * dot(offset, offset)), 0.999);
  if (alpha < 1.0 / 255.0) discard;
  result = vec4(color.rgb * alpha, alpha);
}`;

const WIDTH = 512;  // splats in a row of the texture

function bytesOf(base64) {
  return Uint8Array.from(atob(base64.trim()), (letter) => letter.charCodeAt(0)).buffer;
}

// The texture's numbers, from count rows of nine floats (mean, covariance), then count of four bytes (RGBA).
function unpack(buffer, count) {
  const floats = new Float32Array(buffer, 0, 9 * count);
  const rgba = new Uint8Array(buffer, 36 * count, 4 * count);
  const texels = new Float32Array(WIDTH * Math.ceil(count / WIDTH) * 16);
  for (let i = 0; i < count; i++) {
    texels.set(floats.subarray(9 * i, 9 * i + 3), 16 * i);
    texels[16 * i + 3] = rgba[4 * i + 3] / 255;
    texels.set(floats.subarray(9 * i + 3, 9 * i + 9), 16 * i + 4);
    for (let k = 0; k < 3; k++) texels[16 * i + 12 + k] = rgba[4 * i + k] / 255;
  }
  return texels;
}

// Indices from far to near, by counting 16-bit depths.
function sortByDepth(texels, count, view, order) {
  const depths = new Float32Array(count);
  let near = Infinity, far = -Infinity;
  for (let i = 0; i < count; i++) {
    const j = 16 * i;
    const depth = view[2] * texels[j] + view[6] * texels[j + 1] + view[10] * texels[j + 2];
    depths[i] = depth;
    near = Math.min(near, depth);
    far = Math.max(far, depth);
  }
  const scale = 65535 / Math.max(far - near, 1e-9);
  const starts = new Uint32Array(65537);
  for (let i = 0; i < count; i++) starts[((far - depths[i]) * scale | 0) + 1]++;
  for (let k = 0; k < 65536; k++) starts[k + 1] += starts[k];
  for (let i = 0; i < count; i++) order[starts[(far - depths[i]) * scale | 0]++] = i;
}

function makeProgram(gl) {
  const program = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program));
  gl.useProgram(program);
  return program;
}

// World to camera, column by column, as cameras.py defines it: +Z up, azimuth 0 looks from +X.
function viewMatrix(camera) {
  const a = camera.azimuth, e = camera.elevation;
  const ca = Math.cos(a), sa = Math.sin(a), ce = Math.cos(e), se = Math.sin(e);
  return new Float32Array([
    -sa, se * ca, -ce * ca, 0,
    ca, se * sa, -ce * sa, 0,
    0, -ce, -se, 0,
    0, 0, camera.distance, 1,
  ]);
}

function show(canvas, settings, buffer) {
  const gl = canvas.getContext("webgl2", { alpha: false, antialias: false, depth: false });
  if (!gl) throw new Error("this browser has no WebGL 2");
  const { count, background } = settings;
  const program = makeProgram(gl);
  const texels = unpack(buffer, count);
  gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
  gl.texImage2D(
    gl.TEXTURE_2D, 0, gl.RGBA32F, 4 * WIDTH, texels.length / (16 * WIDTH), 0, gl.RGBA, gl.FLOAT, texels);
  gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.NEAREST);
  gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MAG_FILTER, gl.NEAREST);
  gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
  gl.bufferData(gl.ARRAY_BUFFER, new Float32Array([-1, -1, 1, -1, -1, 1, 1, 1]), gl.STATIC_DRAW);
  const corner = gl.getAttribLocation(program, "corner"), index = gl.getAttribLocation(program, "index");
  gl.enableVertexAttribArray(corner);
  gl.vertexAttribPointer(corner, 2, gl.FLOAT, false, 0, 0);
  gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());  // stays bound: the order of each frame goes there
  gl.enableVertexAttribArray(index);
  gl.vertexAttribIPointer(index, 1, gl.UNSIGNED_INT, 0, 0);
  gl.vertexAttribDivisor(index, 1);
  gl.enable(gl.BLEND);
  gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
  gl.clearColor(background[0], background[1], background[2], 1);
  const place = (name) => gl.getUniformLocation(program, name);
  const order = new Uint32Array(count);

  function draw(camera) {
    const density = Math.min(window.devicePixelRatio || 1, 2);
    const width = Math.round(canvas.clientWidth * density), height = Math.round(canvas.clientHeight * density);
    if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
    const view = viewMatrix(camera);
    sortByDepth(texels, count, view, order);
    gl.viewport(0, 0, width, height);
    gl.clear(gl.COLOR_BUFFER_BIT);
    gl.bufferData(gl.ARRAY_BUFFER, order, gl.DYNAMIC_DRAW);
    gl.uniformMatrix4fv(place("view"), false, view);
    gl.uniform2f(place("size"), width, height);
    gl.uniform1f(place("focal"), 0.5 * height / Math.tan(0.5 * camera.fov));
    gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, count);
    canvas.dataset.drawn = String(1 + Number(canvas.dataset.drawn || 0));
  }
  return draw;
}

function steer(canvas, home, draw) {
  const camera = { ...home };
  const fingers = new Map();
  let asked = false;
  const redraw = () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => { asked = false; draw(camera); });
  };
  const turn = (right, down) => {
    camera.azimuth -= right;
    camera.elevation = Math.min(Math.max(camera.elevation + down, -1.55), 1.55);
    redraw();
  };
  const zoom = (factor) => {
    camera.distance = Math.min(Math.max(camera.distance * factor, 0.3), 20);
    redraw();
  };
  const spread = () => {
    const [a, b] = [...fingers.values()];
    return Math.hypot(a.x - b.x, a.y - b.y);
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
  });
  canvas.addEventListener("pointermove", (event) => {
    const finger = fingers.get(event.pointerId);
    if (!finger) return;
    const before = fingers.size === 2 ? spread() : 0;
    const right = event.clientX - finger.x, down = event.clientY - finger.y;
    [finger.x, finger.y] = [event.clientX, event.clientY];
    if (fingers.size === 1) turn(right * 0.01, down * 0.01);
    else if (fingers.size === 2) zoom(before / Math.max(spread(), 1));
  });
  for (const end of ["pointerup", "pointercancel"])
    canvas.addEventListener(end, (event) => fingers.delete(event.pointerId));
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(Math.exp(Math.sign(event.deltaY) * 0.1));
  }, { passive: false });
  canvas.addEventListener("dblclick", () => { Object.assign(camera, home); redraw(); });
  canvas.addEventListener("keydown", (event) => {
    const keys = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, -0.1], ArrowDown: [0, 0.1] };
    if (event.key in keys) { event.preventDefault(); turn(...keys[event.key]); }
    if (event.key === "+" || event.key === "-") zoom(event.key === "+" ? 0.9 : 1.1);
  });
  new ResizeObserver(redraw).observe(canvas);
  redraw();
}

const canvas = document.getElementById("viewer");
try {
  const settings = JSON.parse(document.getElementById("settings").textContent);
  const draw = show(canvas, settings, bytesOf(document.getElementById("splats").textContent));
  steer(canvas, settings.camera, draw);
} catch (error) {
  const notice = document.createElement("p");
  notice.textContent = `No interactive view: ${error.message}.`;
  canvas.replaceWith(notice);
}
