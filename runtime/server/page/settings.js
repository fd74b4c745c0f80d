// The form: from it to a recipe, and back.

import { byId, percent } from "./common.js";
import { blend, isSeed } from "./recipe.js";

const KEYFRAME = ["prompt", "seed", "index"];
const SLIDERS = ["sentence-share", "noise-share", "psi"];

/** A seed by chance, as text. */
export function drawnSeed() {
  return String(crypto.getRandomValues(new Uint32Array(1))[0]);
}

export function share(name) {
  return Number(byId(name).value);
}

/** Set a slider, and what it says. */
export function setShare(name, value) {
  const slider = byId(name);
  slider.value = value;
  slider.setAttribute("aria-valuetext", percent(slider.value));
  document.querySelector(`output[for="${name}"]`).value = percent(slider.value);
}

/** A recipe, or null while the start has no prompt or a seed is none; what is wrong is marked. */
export function recipeOfForm() {
  const start = keyframe("start", "");
  const end = keyframe("end", byId("start-prompt").value);
  if (!start || !end) return null;
  return blend(start, end, ...SLIDERS.map(share));
}

function keyframe(name, usualPrompt) {
  const [prompt, seed, index] = KEYFRAME.map((it) => byId(`${name}-${it}`));
  const valid = isSeed(seed.value);
  seed.setAttribute("aria-invalid", String(!valid));
  const said = prompt.value.trim() ? prompt.value : usualPrompt;
  if (!valid || !said.trim() || !index.validity.valid || index.value === "") return null;
  return { prompt: said, seed: seed.value, index: index.valueAsNumber };
}

/** Put a recipe into the form. */
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

/** The end becomes the start, and the other way round; the picture stays what it is. */
export function swapEnds() {
  const read = (name) => Object.fromEntries(KEYFRAME.map((it) => [it, byId(`${name}-${it}`).value]));
  const [start, end] = [read("start"), read("end")];
  if (!end.prompt.trim()) end.prompt = start.prompt;
  fill("start", end);
  fill("end", start);
  for (const name of ["sentence-share", "noise-share"]) setShare(name, 1 - share(name));
}
