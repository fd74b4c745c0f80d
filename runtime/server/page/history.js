// Pictures that were made or kept: in this browser's own store, so that they outlive the page.

const STORE = "pictures";
const MOST = 500;

function done(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

async function opened() {
  const request = indexedDB.open("galip-edge-studio", 1);
  request.onupgradeneeded = () =>
    request.result.createObjectStore(STORE, { keyPath: "id", autoIncrement: true });
  return done(request);
}

/** Items are {id, recipe, blob}, the oldest first. Without a store, the page alone keeps them. */
export class History {
  #store;
  items = [];

  static async open() {
    const history = new History();
    try {
      history.#store = await opened();
      history.items = await done(history.#access("readonly").getAll());
    } catch {
      history.#store = null;
    }
    return history;
  }

  #access(mode) {
    return this.#store.transaction(STORE, mode).objectStore(STORE);
  }

  /** Add a picture; returns the item, and those that had to go for it. */
  async add(recipe, blob) {
    const item = { recipe, blob };
    try {
      if (this.#store) item.id = await done(this.#access("readwrite").add({ recipe, blob }));
    } catch {
      // The store is full: the page alone keeps this one.
    }
    this.items.push(item);
    const gone = this.items.splice(0, Math.max(0, this.items.length - MOST));
    for (const each of gone) await this.#forget(each);
    return { item, gone };
  }

  async remove(item) {
    this.items = this.items.filter((each) => each !== item);
    await this.#forget(item);
  }

  async #forget(item) {
    if (this.#store && item.id !== undefined) await done(this.#access("readwrite").delete(item.id));
  }

  async clear() {
    this.items = [];
    if (this.#store) await done(this.#access("readwrite").clear());
  }
}
