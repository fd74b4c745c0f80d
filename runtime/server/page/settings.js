// Conversion between the form and recipes.

import { byId, percent } from "./common.js";
import { interpolation, isSeed } from "./recipe.js";

const KEYFRAME = ["prompt", "seed", "index"];
const SLIDERS = ["sentence-share", "noise-share", "psi"];

/** A random seed, as string. */
export function drawnSeed() {
  return String(crypto.getRandomValues(new Uint32Array(1))[0]);
}

export function share(name) {
  return Number(byId(name).value);
}

/** Set a slider and its output. */
export function setShare(name, value) {
  const slider = byId(name);
  slider.value = value;
  slider.setAttribute("aria-valuetext", percent(slider.value));
  document.querySelector(`output[for="${name}"]`).value = percent(slider.value);
}

/** The form's recipe, or null while it is invalid; invalid fields are marked. */
export function recipeOfForm() {
  const start = keyframe("start", "");
  const end = keyframe("end", byId("start-prompt").value);
  if (!start || !end) return null;
  return interpolation(start, end, ...SLIDERS.map(share));
}

function keyframe(name, usualPrompt) {
  const [prompt, seed, index] = KEYFRAME.map((it) => byId(`${name}-${it}`));
  const valid = isSeed(seed.value);
  seed.setAttribute("aria-invalid", String(!valid));
  const said = prompt.value.trim() ? prompt.value : usualPrompt;
  if (!valid || !said.trim() || !index.validity.valid || index.value === "") return null;
  return { prompt: said, seed: seed.value, index: index.valueAsNumber };
}

/** Fill the form from a recipe. */
export function fillForm({ prompt, seed, index, end, sentence_share, noise_share, psi }) {
  fill("start", { prompt, seed, index });
  if (end) fill("end", { ...end, prompt: end.prompt === prompt ? "" : end.prompt });
  setShare("sentence-share", end ? sentence_share : 0);
  setShare("noise-share", end ? noise_share : 0);
  setShare("psi", psi ?? 1);
  byId("together").checked = !end || sentence_share === noise_share;
}

function fill(name, keyframe) {
  for (const [key, value] of Object.entries(keyframe)) byId(`${name}-${key}`).value = value;
}

/** Swap start and end; the image stays the same. */
export function swapEnds() {
  const read = (name) => Object.fromEntries(KEYFRAME.map((it) => [it, byId(`${name}-${it}`).value]));
  const [start, end] = [read("start"), read("end")];
  if (!end.prompt.trim()) end.prompt = start.prompt;
  fill("start", end);
  fill("end", start);
  for (const name of ["sentence-share", "noise-share"]) setShare(name, 1 - share(name));
}
