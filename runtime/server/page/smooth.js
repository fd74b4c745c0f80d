// Smooth enlargement of an image at rest.
//
// Browsers enlarge images with bilinear filters, which is fast enough while a slider moves. At rest,
// a canvas with the browser's best filter covers the image.

const REST = 150; // milliseconds without a new image

export class Smooth {
  #image;
  #canvas;
  #timer;
  #latest = null;

  constructor(image, canvas) {
    this.#image = image;
    this.#canvas = canvas;
    new ResizeObserver(() => this.#wait()).observe(image);
  }

  /** Notify that an image is shown, from a blob. */
  shown(blob) {
    this.#latest = blob;
    this.#wait();
  }

  #wait() {
    this.#canvas.hidden = true;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#enlarge(this.#latest), REST);
  }

  async #enlarge(blob) {
    const side = Math.round(this.#image.clientWidth * devicePixelRatio);
    if (!blob || side <= this.#image.naturalWidth) return;
    try {
      const bitmap = await createImageBitmap(blob, {
        resizeWidth: side,
        resizeHeight: side,
        resizeQuality: "high",
      });
      if (blob !== this.#latest) return;
      this.#canvas.width = this.#canvas.height = side;
      this.#canvas.getContext("bitmaprenderer").transferFromImageBitmap(bitmap);
      this.#canvas.hidden = false;
    } catch {
      // The image itself stays.
    }
  }
}
