// Generated and kept images, stored in the browser's IndexedDB.

const STORE = "pictures";
const MAX_ITEMS = 500;

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

/** Items {id, recipe, blob}, oldest first; in memory only where the browser has no store. */
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

  /** Add an image; returns its item and the evicted ones. */
  async add(recipe, blob) {
    const item = { recipe, blob };
    try {
      if (this.#store) item.id = await done(this.#access("readwrite").add({ recipe, blob }));
    } catch {
      // The store is full: kept in memory.
    }
    this.items.push(item);
    const evicted = this.items.splice(0, Math.max(0, this.items.length - MAX_ITEMS));
    for (const each of evicted) await this.#forget(each);
    return { item, evicted };
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
