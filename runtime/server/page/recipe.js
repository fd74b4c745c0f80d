// Recipes of images: the JSON of our PNG files, but with seeds as strings, since they have up to 63
// bits and JavaScript numbers only 53.

import { percent } from "./common.js";

const CHUNK = "galip-edge";
const MAX_SEED = 2n ** 63n - 1n;
const MAX_INDEX = 2 ** 31 - 1;

/** JSON with seeds as numbers, and as strings. Quotes inside of prompts are escaped. */
const withNumbers = (text) => text.replace(/"seed":"(\d+)"/g, '"seed":$1');
const withTexts = (text) => text.replace(/"seed": ?(\d+)/g, '"seed":"$1"');

/** Test for a valid seed. */
export function isSeed(text) {
  return typeof text === "string" && /^\d{1,19}$/.test(text) && BigInt(text) <= MAX_SEED;
}

/**
 * The recipe of an interpolation between two keyframes {prompt, seed, index}.
 * At either end it is the keyframe's own, as of `galip-edge generate`.
 */
export function interpolation(start, end, sentenceShare, noiseShare, psi) {
  const shares = sentenceShare + noiseShare;
  const from = shares === 2 ? end : start;
  const between = shares > 0 && shares < 2;
  return {
    ...from,
    ...(psi < 1 && { psi }),
    ...(between && { end, sentence_share: sentenceShare, noise_share: noiseShare }),
  };
}

/** The same recipe with its image indices increased by `more`. */
export function numbered(recipe, more) {
  const next = (keyframe) => ({ ...keyframe, index: keyframe.index + more });
  return { ...next(recipe), ...(recipe.end && { end: next(recipe.end) }) };
}

/** Request body for a recipe. */
export function requestOf({ prompt, seed, index, end, sentence_share, noise_share, psi }) {
  const start = { prompt, seed, index };
  return withNumbers(JSON.stringify({ start, end, sentence_share, noise_share, psi }));
}

/** Test for a PNG file. */
export async function isPng(blob) {
  return (await blob.slice(1, 4).text()) === "PNG";
}

const ENTITIES = { "&lt;": "<", "&gt;": ">", "&quot;": '"', "&amp;": "&" };

/** The recipe in the XMP packet of a JPEG or WebP of galip-edge, or null. */
function recipeInXmp(bytes) {
  const packet = /<galip:recipe>([^<]*)<\/galip:recipe>/.exec(new TextDecoder().decode(bytes));
  return packet && parsed(packet[1].replace(/&(lt|gt|quot|amp);/g, (entity) => ENTITIES[entity]));
}

/** The recipe in a PNG, JPEG or WebP of galip-edge, or null. */
export async function recipeOf(blob) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  const view = new DataView(bytes.buffer);
  const text = (from, to) => new TextDecoder("latin1").decode(bytes.subarray(from, to));
  if (text(1, 4) !== "PNG") return recipeInXmp(bytes);
  for (let at = 8; at + 12 <= bytes.length; ) {
    const length = view.getUint32(at);
    if (text(at + 4, at + 8) === "tEXt") {
      const [keyword, value] = text(at + 8, at + 8 + length).split("\0");
      if (keyword === CHUNK) return parsed(value ?? "");
    }
    at += length + 12;
  }
  return null;
}

function parsed(text) {
  let found;
  try {
    found = JSON.parse(withTexts(text));
  } catch {
    return null;
  }
  const { end, psi, sentence_share, noise_share } = found ?? {};
  const shares = end ? [sentence_share, noise_share] : [];
  const valid =
    isKeyframe(found) &&
    (!end || isKeyframe(end)) &&
    shares.every(isShare) &&
    (psi === undefined || isShare(psi));
  return valid ? found : null;
}

const isShare = (value) => typeof value === "number" && value >= 0 && value <= 1;

function isKeyframe(value) {
  const { prompt, seed, index } = value ?? {};
  return (
    typeof prompt === "string" &&
    prompt.trim() !== "" &&
    isSeed(seed) &&
    Number.isInteger(index) &&
    index >= 0 &&
    index <= MAX_INDEX
  );
}

/** The command that reproduces an image, or null for an interpolation. */
export function commandOf({ prompt, seed, index, end, psi }) {
  if (end) return null;
  const options = [`--seed ${seed}`];
  if (index > 0) options.push(`-n ${index + 1}`); // images 0 to index
  if (psi !== undefined && psi !== 1) options.push(`--psi ${psi}`);
  const quoted = `'${prompt.replaceAll("'", `'\\''`)}'`;
  return `galip-edge generate ${options.join(" ")} -- ${quoted}`;
}

/** Description in one line. */
export function described({ prompt, seed, index, end, sentence_share, noise_share, psi }) {
  const of = (keyframe) => `(seed ${keyframe.seed}, image ${keyframe.index})`;
  let text = `${prompt} ${of({ seed, index })}`;
  if (end) {
    text += ` → ${end.prompt === prompt ? "" : `${end.prompt} `}${of(end)}`;
    text += `, prompt ${percent(sentence_share)}, seed ${percent(noise_share)}`;
  }
  return psi === undefined ? text : `${text}, ψ ${percent(psi)}`;
}

/** Short description without the prompt. */
export function brief({ seed, index, end, psi }) {
  return `seed ${seed} · ${index}${end ? " →" : ""}${psi === undefined ? "" : " ψ"}`;
}

/** File name without suffix. */
export function fileName({ prompt, seed, index }) {
  const words = prompt.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-");
  return `${words.replace(/^-+|-+$/g, "").slice(0, 40) || "image"}-s${seed}-${index}`;
}
