// How an exported page's model runs in Node: load time, seconds for an image, memory.
//
//   galip-edge export-web BUNDLE SITE
//   node benchmarks/web_node.mjs SITE [--runs 5] [--out image.ppm]
//
// The same WebAssembly, JavaScript and models as in a browser, in one thread: the web build of ONNX
// Runtime cannot start threads in Node. Prints JSON; times are of the CPU, which other processes
// disturb least.

import { readFileSync, statSync, writeFileSync } from "node:fs";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { parseArgs } from "node:util";
import { gunzipSync } from "node:zlib";

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    runs: { type: "string", default: "5" },
    prompt: { type: "string", default: "a red bird on a branch" },
    seed: { type: "string", default: "7" },
    out: { type: "string" },
  },
});
const site = resolve(positionals[0]);
const load = (name) => import(pathToFileURL(resolve(site, name)).href);
const ort = await load("vendor/onnxruntime/ort.wasm.min.mjs");
const { drawNoise } = await load("browser/noise.js");
const { Tokenizer } = await load("browser/tokenizer.js");
const unpacked = (path) => gunzipSync(readFileSync(`${path}.gz`));
const onnxRuntime = resolve(site, "vendor/onnxruntime");
ort.env.wasm.wasmPaths = pathToFileURL(onnxRuntime).href + "/";
ort.env.wasm.wasmBinary = unpacked(resolve(onnxRuntime, "ort-wasm-simd-threaded.wasm"));
ort.env.wasm.numThreads = 1;

const model = (name) => resolve(site, "model", name);
const json = (name) => JSON.parse(readFileSync(model(name), "utf-8"));
const seconds = async (work) => {
  const start = process.cpuUsage();
  const result = await work();
  const { user, system } = process.cpuUsage(start);
  return [(user + system) / 1e6, result];
};
const median = (all) => [...all].sort((a, b) => a - b)[Math.floor(all.length / 2)];

const config = json("model.json");
const merges = readFileSync(model("merges.txt"), "utf-8").split("\n").filter((line) => line);
const tokenizer = new Tokenizer(merges, config.context_length, json("text_tables.json"));
const create = (name) => ort.InferenceSession.create(unpacked(model(name)));
const [loading, [encoder, generator]] = await seconds(async () => [
  await create("text_encoder.onnx"),
  await create("generator.onnx"),
]);

const { row } = tokenizer.row(values.prompt);
const tokens = new ort.Tensor("int64", row, [1, row.length]);
const noise = drawNoise(BigInt(values.seed), values.prompt, 0, config.noise_dim);
const text = [];
const image = [];
let pixels;
for (let run = 0; run < Number(values.runs); run++) {
  const [encoding, { sentence }] = await seconds(() => encoder.run({ tokens }));
  const inputs = { noise: new ort.Tensor("float32", noise, [1, noise.length]), sentence };
  const [generating, output] = await seconds(() => generator.run(inputs));
  text.push(encoding);
  image.push(generating);
  pixels = output.image.data;
}
if (values.out) {
  const size = config.image_size;
  writeFileSync(values.out, Buffer.concat([Buffer.from(`P6\n${size} ${size}\n255\n`), pixels]));
}
const bytes = (name) => statSync(model(name)).size;
console.log(
  JSON.stringify({
    model: config.id,
    text_encoder_bytes: bytes("text_encoder.onnx.gz"),
    generator_bytes: bytes("generator.onnx.gz"),
    load_s: loading,
    text_s: median(text),
    image_s: median(image),
    resident_bytes: process.memoryUsage().rss,
    peak_resident_bytes: process.resourceUsage().maxRSS * 1024,
  }),
);
process.exit(0);
