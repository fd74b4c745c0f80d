// The page: what happens when.

import { byId, wait } from "./common.js";
import { download, Gallery } from "./gallery.js";
import { Live, Rate } from "./live.js";
import { Player } from "./player.js";
import { commandOf, described, fileName, numbered, recipeOf, requestOf } from "./recipe.js";
import { picture, servedModel, useKey } from "./backend.js";
import { Smooth } from "./smooth.js";
import { drawnSeed, fillForm, recipeOfForm, setShare, share, swapEnds } from "./settings.js";

// Of the six connections that browsers have to a server, some stay for the picture that follows.
const AT_ONCE = 4;

let model = null;
let shown = null; // {recipe, blob}
let making = null; // an AbortController
let troubled = false; // whether the status tells of something that may be over

function say(text) {
  const status = byId("status");
  if (status.textContent !== text) status.textContent = text; // it is read aloud when it changes
}

/** Report an error until an image is shown again. */
function complain(text) {
  say(text);
  troubled = true;
}

function failed(error) {
  if (error.status === 401) byId("key").showModal();
  else complain(error.message);
}

// ---- The picture that is shown ----

async function show({ recipe, blob }) {
  const next = new Image();
  next.src = URL.createObjectURL(blob);
  await next.decode().catch((error) => {
    URL.revokeObjectURL(next.src);
    throw error; // what was shown stays
  });
  const image = byId("picture");
  if (image.src) URL.revokeObjectURL(image.src);
  image.src = next.src;
  image.hidden = false;
  image.alt = byId("recipe").textContent = described(recipe);
  smooth.shown(blob);
  byId("keep").disabled = byId("save").disabled = false;
  byId("copy").disabled = commandOf(recipe) === null;
  byId("copy").title = byId("copy").disabled ? "No command makes an image between two." : "";
  shown = { recipe, blob };
}

const smooth = new Smooth(byId("picture"), byId("smooth"));
const rate = new Rate(byId("rate"));

const live = new Live(
  (recipe) => picture(requestOf(recipe)),
  async ({ blob, warning }, recipe) => {
    await show({ recipe, blob });
    rate.add();
    if (troubled || warning) say(warning ?? "");
    troubled = warning !== null;
  },
  (error) => {
    failed(error);
    return error.retryAfter;
  },
);

/** Show what the form says. */
function follow() {
  const recipe = recipeOfForm();
  if (recipe) live.wish(recipe);
}

/** Show a picture that is there, with its settings in the form. */
async function open(item) {
  player.stop();
  live.drop();
  fillForm(item.recipe);
  await show(item);
}

async function openFile(file) {
  const recipe = await recipeOf(file);
  if (!recipe) {
    complain(`${file.name} has no settings of galip-edge inside: drop a PNG that it wrote.`);
    return;
  }
  try {
    await open({ recipe, blob: file });
  } catch {
    say(`${file.name} is damaged; its settings are in the form.`);
    return;
  }
  const other = model && recipe.model_hash !== model.model_hash;
  say(
    other
      ? `${file.name} is by the model ${recipe.model}: the one that is served draws it otherwise.`
      : `The settings of ${file.name} are in the form.`,
  );
}

/** Put a text into the clipboard, also over plain http, where pages have no clipboard API. */
async function copy(text) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(text);
    return;
  }
  const area = document.createElement("textarea");
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

// ---- Sliders ----

const OTHER = { "sentence-share": "noise-share", "noise-share": "sentence-share" };

function move(name, value) {
  setShare(name, value);
  if (OTHER[name] && byId("together").checked) setShare(OTHER[name], value);
  follow();
}

const player = new Player(byId("play"), (value) => {
  move("sentence-share", value);
});

// ---- Pictures into the history ----

let gallery = null;

/** Put a picture into the history, by what its file says: that has the model, too. */
async function keep({ recipe, blob }) {
  await gallery.add((await recipeOf(blob)) ?? recipe, blob);
}

/** A picture, also if the server has to be asked again. */
async function patiently(recipe, signal) {
  for (;;) {
    try {
      const { blob } = await picture(requestOf(recipe), signal);
      return { recipe, blob };
    } catch (error) {
      if (error.status !== 429) throw error;
      say(error.message);
      await wait(error.retryAfter);
    }
  }
}

/** Make pictures of the form's recipe, a few at once. */
async function make() {
  const recipe = recipeOfForm();
  const count = byId("count").valueAsNumber;
  if (!recipe || !byId("count").validity.valid) {
    complain("The start needs a prompt, both ends need seeds, and the number of images is 1 to 64.");
    return;
  }
  making = new AbortController();
  byId("make").textContent = "Stop";
  const started = performance.now();
  let made = 0;
  const pending = [];
  const keepNext = async () => {
    const item = await pending.shift();
    await keep(item);
    if (++made === 1) await show(item);
  };
  try {
    for (let index = 0; index < count; index += 1) {
      if (pending.length === AT_ONCE) await keepNext();
      const asked = patiently(numbered(recipe, index), making.signal);
      asked.catch(() => {}); // told when its turn comes
      pending.push(asked);
    }
    while (pending.length) await keepNext();
    const seconds = ((performance.now() - started) / 1000).toFixed(2);
    say(`${count} ${count === 1 ? "image" : "images"} in ${seconds} s, seed ${recipe.seed}.`);
    troubled = false;
  } catch (error) {
    if (error.name === "AbortError") say(`Stopped after ${made} of ${count}.`);
    else failed(error);
  } finally {
    making.abort();
    making = null;
    byId("make").textContent = "Generate";
  }
}

// ---- Events ----

function listen() {
  const form = byId("settings");
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (making) making.abort();
    else make();
  });
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.ctrlKey && !making) make();
  });
  form.addEventListener("input", ({ target }) => {
    if (target.type === "range") {
      player.stop();
      move(target.id, target.valueAsNumber);
    } else if (!["count", "file", "together"].includes(target.id)) follow();
  });
  for (const dice of document.querySelectorAll(".dice")) {
    dice.addEventListener("click", () => {
      byId(dice.dataset.for).value = drawnSeed();
      follow();
    });
  }
  byId("play").addEventListener("click", () => player.toggle(share("sentence-share")));
  byId("swap").addEventListener("click", () => {
    swapEnds();
    follow();
  });
  byId("keep").addEventListener("click", async () => {
    await keep(shown);
    say("Kept in the history.");
  });
  byId("save").addEventListener("click", () => download(shown.blob, `${fileName(shown.recipe)}.png`));
  byId("copy").addEventListener("click", async () => {
    await copy(commandOf(shown.recipe));
    say("The command is in the clipboard.");
  });
  byId("open").addEventListener("click", () => byId("file").click());
  byId("file").addEventListener("change", ({ target }) => {
    if (target.files.length) openFile(target.files[0]);
    target.value = "";
  });
  byId("zip").addEventListener("click", async () => download(await gallery.zip(), "pictures.zip"));
  byId("clear").addEventListener("click", () => {
    if (confirm("Remove all pictures of the history from this browser?")) gallery.clear();
  });
  byId("key").addEventListener("close", () => {
    useKey(byId("key-value").value);
    connect();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    making?.abort();
    player.stop();
  });
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    if (event.dataTransfer.files.length) openFile(event.dataTransfer.files[0]);
  });
}

/** Meet the server, again and again until it is there. */
async function connect() {
  while (!model) {
    try {
      model = await servedModel();
    } catch (error) {
      failed(error);
      if (error.retryAfter === undefined) return;
      await wait(error.retryAfter);
    }
  }
  byId("model").textContent = `${model.id} · ${model.image_size} × ${model.image_size} pixels`;
  say("");
  follow();
}

gallery = await Gallery.of(open);
listen();
await connect();
