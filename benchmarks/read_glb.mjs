// Convert the Gaussians of a .glb to a .ply by PlayCanvas' own parser, without a GPU.
// node read_glb.mjs PLAYCANVAS IN.glb OUT.ply: PLAYCANVAS is the folder of the npm package.

import { readFileSync, writeFileSync } from "node:fs";
import { resolve } from "node:path";

const [engine, source, target] = process.argv.slice(2);
const load = (file) => import(resolve(engine, "build/playcanvas/src", file));
const { NullGraphicsDevice } = await load("platform/graphics/null/null-graphics-device.js");
const { GlbParser } = await load("framework/parsers/glb-parser.js");
const { khrGaussianSplatting } = await load("framework/parsers/glb/extensions/khr-gaussian-splatting.js");

const listening = { addEventListener() {}, removeEventListener() {} };
const canvas = { ...listening, getBoundingClientRect: () => ({ width: 1, height: 1 }) };
const file = readFileSync(source);
const bytes = file.buffer.slice(file.byteOffset, file.byteOffset + file.byteLength);
const registry = { loader: { _app: null } };

function write(error, scene) {
    if (error) throw error;
    const data = scene.gsplats[0][0].gsplatData; // of the first primitive of the first mesh
    const names = data.elements[0].properties.map((property) => property.name);
    const columns = names.map((name) => Float32Array.from(data.getProp(name), stored(name)));
    const header = ["ply", "format binary_little_endian 1.0", `element vertex ${data.numSplats}`];
    header.push(...names.map((name) => `property float ${name}`), "end_header\n");
    const rows = new Float32Array(data.numSplats * names.length);
    columns.forEach((column, at) => column.forEach((value, row) => (rows[row * names.length + at] = value)));
    writeFileSync(target, Buffer.concat([Buffer.from(header.join("\n")), Buffer.from(rows.buffer)]));
}

function stored(name) { // the parser keeps standard deviations and alphas, a .ply logarithms and logits
    if (name.startsWith("scale_")) return (value) => Math.log(value);
    return name === "opacity" ? (value) => Math.log(value / (1 - value)) : (value) => value;
}

GlbParser.parse(source, "", bytes, new NullGraphicsDevice(canvas), registry, {}, [khrGaussianSplatting], write);
