// The model, off the page's thread: prompts to PNG files, one request after the other.

import * as ort from "../vendor/onnxruntime/ort.wasm.min.mjs";
import { slerp } from "./latent.js";
import { drawNoise, truncate } from "./noise.js";
import { png, XMP } from "./png.js";
import { Tokenizer } from "./tokenizer.js";

const MODEL = new URL("../model/", import.meta.url);
const ONNX_RUNTIME = new URL("../vendor/onnxruntime/", import.meta.url);
const MAX_CHARACTERS = 2000;
const MAX_THREADS = 4;
const KEPT_SENTENCES = 64;

ort.env.wasm.wasmPaths = ONNX_RUNTIME.href;
ort.env.wasm.numThreads = self.crossOriginIsolated
  ? Math.min(navigator.hardwareConcurrency || 1, MAX_THREADS)
  : 1;

class RequestError extends Error {
  constructor(message) {
    super(message);
    this.status = 400;
  }
}

async function responseOf(name, base) {
  const response = await fetch(new URL(name, base));
  if (!response.ok) throw new Error(`${name} could not be loaded (HTTP ${response.status})`);
  return response;
}

/** Bytes of a file that is stored as NAME.gz, reporting how many have arrived. */
async function fetched(name, base, onBytes = () => {}) {
  const response = await responseOf(`${name}.gz`, base);
  const reader = response.body.getReader();
  const parts = [];
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    onBytes(value.length);
  }
  const received = new Blob(parts);
  const [first, second] = new Uint8Array(await received.slice(0, 2).arrayBuffer());
  // A host that labels .gz files with Content-Encoding has made the browser decompress them.
  const isCompressed = first === 0x1f && second === 0x8b;
  const stream = isCompressed
    ? received.stream().pipeThrough(new DecompressionStream("gzip"))
    : received.stream();
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function load() {
  const config = await (await fetch(new URL("model.json", MODEL))).json();
  let received = 0;
  const onBytes = (count) => {
    received += count;
    const percent = Math.min(100, Math.round((100 * received) / config.bytes));
    self.postMessage({ progress: `loading the model: ${percent} %` });
  };
  const [merges, tables, text, generator, runtime] = await Promise.all([
    responseOf("merges.txt", MODEL).then((response) => response.text()),
    fetch(new URL("text_tables.json", MODEL)).then((response) => response.json()),
    fetched("text_encoder.onnx", MODEL, onBytes),
    fetched("generator.onnx", MODEL, onBytes),
    fetched("ort-wasm-simd-threaded.wasm", ONNX_RUNTIME),
  ]);
  self.postMessage({ progress: "preparing the model" });
  ort.env.wasm.wasmBinary = runtime;
  return {
    config,
    tokenizer: new Tokenizer(
      merges.split("\n").filter((line) => line),
      config.context_length,
      tables,
    ),
    textEncoder: await ort.InferenceSession.create(text),
    generator: await ort.InferenceSession.create(generator),
  };
}

let model = null;
const loaded = () => (model ??= load());
const sentences = new Map();

/** The sentence embedding of a prompt; the latest are kept. */
async function sentenceOf(prompt) {
  if (sentences.has(prompt)) return sentences.get(prompt);
  const { config, tokenizer, textEncoder } = await loaded();
  const { row, length } = tokenizer.row(prompt);
  const tokens = new ort.Tensor("int64", row, [1, row.length]);
  const found = {
    embedding: (await textEncoder.run({ tokens })).sentence.data,
    warning:
      length > config.context_length - 2
        ? `a prompt has ${length} tokens, the model reads the first ${config.context_length - 2}`
        : null,
  };
  if (sentences.size === KEPT_SENTENCES) sentences.delete(sentences.keys().next().value);
  sentences.set(prompt, found);
  return found;
}

function checkPrompt(prompt) {
  if (!prompt?.trim()) throw new RequestError("the prompt is empty: describe what the image should show");
  if ([...prompt].length > MAX_CHARACTERS) {
    throw new RequestError(`the prompt has more than ${MAX_CHARACTERS} characters`);
  }
  if (!prompt.isWellFormed?.() && /[\ud800-\udfff]/u.test(prompt)) {
    throw new RequestError("the prompt is not valid text");
  }
}

async function latentOf({ prompt, seed, index }, psi) {
  checkPrompt(prompt);
  const { config } = await loaded();
  const noise = truncate(drawNoise(BigInt(seed), prompt, index, config.noise_dim), psi);
  return { noise, ...(await sentenceOf(prompt)) };
}

/** Seeds have up to 63 bits and JavaScript's numbers 53: they stay text. */
const withTexts = (text) => text.replace(/"seed": ?(\d+)/g, '"seed":"$1"');
const withNumbers = (text) => text.replace(/"seed": ?"(\d+)"/g, '"seed": $1');

async function image(body) {
  const { config, generator } = await loaded();
  const wanted = JSON.parse(withTexts(body));
  const { start, end, sentence_share = 0, noise_share = 0, psi = 1 } = wanted;
  const first = await latentOf(start, psi);
  const last = end ? await latentOf(end, psi) : first;
  const noise = slerp(first.noise, last.noise, end ? noise_share : 0);
  const sentence = slerp(first.embedding, last.embedding, end ? sentence_share : 0);
  const { image } = await generator.run({
    noise: new ort.Tensor("float32", noise, [1, noise.length]),
    sentence: new ort.Tensor("float32", sentence, [1, sentence.length]),
  });
  const blob = await png(image.data, config.image_size, texts(config, wanted, psi));
  image.dispose();
  return { blob, warning: first.warning ?? last.warning };
}

/** Text chunks as those of `galip-edge generate`. */
function texts(config, { start, end, sentence_share = 0, noise_share = 0 }, psi) {
  const { id: name, model_hash, version, image_size: size } = config;
  const recipe = {
    ...start,
    model: name,
    model_hash,
    version,
    ...(psi !== 1 && { psi }),
    ...(end && { end, sentence_share, noise_share }),
  };
  const settings = [
    "Steps: 1",
    "Sampler: GALIP",
    `Seed: ${start.seed}`,
    `Image index: ${start.index}`,
    `Size: ${size}x${size}`,
    `Model hash: ${model_hash.slice(0, 10)}`,
    `Model: ${name}`,
    `Version: galip-edge ${version}`,
  ];
  if (psi !== 1) settings.push(`Psi: ${psi}`);
  if (end) {
    settings.push(
      `Toward: ${JSON.stringify(end.prompt)}`,
      `Toward seed: ${end.seed}`,
      `Toward image index: ${end.index}`,
      `Sentence share: ${sentence_share}`,
      `Noise share: ${noise_share}`,
    );
  }
  const json = JSON.stringify(recipe).replace(
    /[\u0080-\uffff]/g,
    (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
  const caption = end ? `${start.prompt}\n${end.prompt}` : start.prompt;
  return {
    parameters: `${start.prompt}\n${settings.join(", ")}`,
    "galip-edge": withNumbers(json),
    [XMP]: xmpPacket(caption, version, withNumbers(json)),
  };
}

/** Recipe, and IPTC's label for generated media, as in `runtime/recipes.py`. */
function xmpPacket(caption, version, recipe) {
  return (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n' +
    '<x:xmpmeta xmlns:x="adobe:ns:meta/">' +
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">' +
    '<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/" ' +
    'xmlns:xmp="http://ns.adobe.com/xap/1.0/" ' +
    'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" ' +
    'xmlns:galip="urn:galip-edge:recipe:1.0:">' +
    "<Iptc4xmpExt:DigitalSourceType>" +
    "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia" +
    "</Iptc4xmpExt:DigitalSourceType>" +
    `<xmp:CreatorTool>galip-edge ${escaped(version)}</xmp:CreatorTool>` +
    `<dc:description><rdf:Alt><rdf:li xml:lang="x-default">${escaped(caption)}</rdf:li></rdf:Alt>` +
    `</dc:description><galip:recipe>${escaped(recipe)}</galip:recipe>` +
    '</rdf:Description></rdf:RDF></x:xmpmeta>\n<?xpacket end="w"?>'
  );
}

/** Text for XML; characters that it cannot express are replaced. */
function escaped(text) {
  return text
    .toWellFormed()
    .replace(/[^\t\n\r\x20-\ud7ff\ue000-\ufffd\u{10000}-\u{10ffff}]/gu, "\ufffd")
    .replaceAll("&", "&amp;")
    .replaceAll("<", "&lt;")
    .replaceAll(">", "&gt;");
}

async function answer({ kind, body }) {
  if (kind === "image") return image(body);
  const { config } = await loaded();
  return config;
}

const cancelled = new Set();
let turn = Promise.resolve();

self.addEventListener("message", ({ data }) => {
  if (data.kind === "cancel") {
    cancelled.add(data.id);
    return;
  }
  turn = turn.then(async () => {
    if (cancelled.delete(data.id)) return;
    try {
      self.postMessage({ id: data.id, result: await answer(data) });
    } catch (error) {
      const { status = 500, message } = error;
      self.postMessage({ id: data.id, error: { status, message } });
    }
  });
});
