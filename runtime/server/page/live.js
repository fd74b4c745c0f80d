// The picture that follows the settings.

import { wait } from "./common.js";

/**
 * Makes the newest picture that was wished for, one at a time. A wish takes the place of the one
 * before it, so what is old is dropped and never waits.
 */
export class Live {
  #make;
  #show;
  #fail;
  #wish = null;
  #running = false;
  #dropped = false;

  /**
   * @param make recipe -> promise of what is made
   * @param show (made, recipe) -> promise, done when it is shown
   * @param fail error -> milliseconds after which to try again, or undefined
   */
  constructor(make, show, fail) {
    this.#make = make;
    this.#show = show;
    this.#fail = fail;
  }

  wish(recipe) {
    this.#wish = recipe;
    if (!this.#running) this.#run();
  }

  /** Nothing is wished for any more; what is being made will not be shown. */
  drop() {
    this.#wish = null;
    this.#dropped = true;
  }

  async #run() {
    this.#running = true;
    while (this.#wish) {
      const recipe = this.#wish;
      this.#wish = null;
      this.#dropped = false;
      try {
        const made = await this.#make(recipe);
        if (!this.#dropped) await this.#show(made, recipe);
      } catch (error) {
        const pause = this.#fail(error);
        if (pause !== undefined) {
          await wait(pause);
          if (!this.#dropped) this.#wish ??= recipe;
        }
      }
    }
    this.#running = false;
  }
}

/** Shows how many images were shown in the last second. */
export class Rate {
  #place;
  #times = [];
  #rest;

  constructor(place) {
    this.#place = place;
  }

  add() {
    const now = performance.now();
    this.#times = [...this.#times.filter((time) => time > now - 1000), now];
    this.#place.textContent = `${this.#times.length} frames/s`;
    clearTimeout(this.#rest);
    this.#rest = setTimeout(() => (this.#place.textContent = "0 frames/s"), 1500);
  }
}
