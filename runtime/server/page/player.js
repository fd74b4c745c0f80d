// Animation from start to end and back.

const SECONDS = 3; // from one end to the other

export class Player {
  #button;
  #move;
  #frame = null;

  /** @param move callback with a share in [0,1] */
  constructor(button, move) {
    this.#button = button;
    this.#move = move;
  }

  /** Start from a share, or stop. */
  toggle(from) {
    if (this.#frame !== null) {
      this.stop();
      return;
    }
    this.#button.setAttribute("aria-pressed", "true");
    const offset = Math.acos(1 - 2 * from);
    let begun = null;
    const step = (now) => {
      begun ??= now;
      const angle = offset + (Math.PI * (now - begun)) / 1000 / SECONDS;
      this.#frame = requestAnimationFrame(step);
      this.#move((1 - Math.cos(angle)) / 2);
    };
    this.#frame = requestAnimationFrame(step);
  }

  stop() {
    cancelAnimationFrame(this.#frame);
    this.#frame = null;
    this.#button.setAttribute("aria-pressed", "false");
  }
}
