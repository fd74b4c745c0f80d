// The history on the page.

import { byId } from "./common.js";
import { History } from "./history.js";
import { brief, described, fileName } from "./recipe.js";
import { makeZip } from "./vendor/client-zip.js";

/** Download a file. */
export function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

export class Gallery {
  #history;
  #open;
  #entries = new Map();

  /** @param open callback: shows an item {recipe, blob} */
  static async of(open) {
    const gallery = new Gallery();
    gallery.#open = open;
    gallery.#history = await History.open();
    for (const item of gallery.#history.items) gallery.#append(item);
    gallery.#changed();
    return gallery;
  }

  /** Add an image, newest first. */
  async add(recipe, blob) {
    const { item, evicted } = await this.#history.add(recipe, blob);
    this.#append(item);
    for (const each of evicted) this.#drop(each);
    this.#changed();
  }

  async clear() {
    await this.#history.clear();
    for (const item of [...this.#entries.keys()]) this.#drop(item);
    this.#changed();
  }

  /** The selected images, or all if none is selected, oldest first. */
  async zip() {
    const selected = this.#history.items.filter((item) => this.#isSelected(item));
    const items = selected.length ? selected : this.#history.items;
    const files = items.map(({ recipe, blob }, index) => ({
      name: `${String(index + 1).padStart(3, "0")}-${fileName(recipe)}.png`,
      input: blob,
    }));
    return new Response(makeZip(files)).blob();
  }

  #append(item) {
    const entry = byId("entry").content.cloneNode(true).firstElementChild;
    const image = entry.querySelector("img");
    image.src = URL.createObjectURL(item.blob);
    image.alt = described(item.recipe);
    entry.querySelector(".words").textContent = item.recipe.prompt;
    entry.querySelector(".seed").textContent = brief(item.recipe);
    const [opener, remover] = entry.querySelectorAll("button");
    const chooser = entry.querySelector(".chooser");
    chooser.setAttribute("aria-label", `Select ${image.alt}`);
    chooser.addEventListener("change", () => this.#changed());
    opener.title = image.alt;
    opener.addEventListener("click", () => this.#open(item));
    remover.setAttribute("aria-label", `Remove ${image.alt}`);
    remover.addEventListener("click", () => this.#remove(item));
    this.#entries.set(item, entry);
    byId("images").prepend(entry);
  }

  async #remove(item) {
    const entry = this.#entries.get(item);
    const next = entry.nextElementSibling ?? entry.previousElementSibling;
    (next?.querySelector("button") ?? byId("make")).focus();
    await this.#history.remove(item);
    this.#drop(item);
    this.#changed();
  }

  #drop(item) {
    const entry = this.#entries.get(item);
    URL.revokeObjectURL(entry.querySelector("img").src);
    entry.remove();
    this.#entries.delete(item);
  }

  #isSelected(item) {
    return this.#entries.get(item).querySelector(".chooser").checked;
  }

  #changed() {
    const none = this.#entries.size === 0;
    const selected = [...this.#entries.keys()].filter((item) => this.#isSelected(item)).length;
    byId("zip").textContent = selected ? `Download ZIP (${selected} selected)` : "Download ZIP";
    byId("empty").hidden = !none;
    byId("zip").disabled = byId("clear").disabled = none;
  }
}
