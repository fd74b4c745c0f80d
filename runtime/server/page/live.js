// The image that follows the settings.

import { wait } from "./common.js";

/** Renders the newest requested recipe, one at a time; a request replaces the one before it. */
export class Live {
  #render;
  #show;
  #fail;
  #requested = null;
  #running = false;
  #dropped = false;

  /**
   * @param render recipe -> promise of its result
   * @param show (result, recipe) -> promise, resolved when it is shown
   * @param fail error -> milliseconds after which to retry, or undefined
   */
  constructor(render, show, fail) {
    this.#render = render;
    this.#show = show;
    this.#fail = fail;
  }

  request(recipe) {
    this.#requested = recipe;
    if (!this.#running) this.#run();
  }

  /** Cancel the request; an image in progress is not shown. */
  drop() {
    this.#requested = null;
    this.#dropped = true;
  }

  async #run() {
    this.#running = true;
    while (this.#requested) {
      const recipe = this.#requested;
      this.#requested = null;
      this.#dropped = false;
      try {
        const result = await this.#render(recipe);
        if (!this.#dropped) await this.#show(result, recipe);
      } catch (error) {
        const pause = this.#fail(error);
        if (pause !== undefined) {
          await wait(pause);
          if (!this.#dropped) this.#requested ??= recipe;
        }
      }
    }
    this.#running = false;
  }
}

/** Displays the number of images shown in the last second. */
export class Rate {
  #output;
  #times = [];
  #rest;

  constructor(output) {
    this.#output = output;
  }

  add() {
    const now = performance.now();
    this.#times = [...this.#times.filter((time) => time > now - 1000), now];
    this.#output.textContent = `${this.#times.length} frames/s`;
    clearTimeout(this.#rest);
    this.#rest = setTimeout(() => (this.#output.textContent = "0 frames/s"), 1500);
  }
}
