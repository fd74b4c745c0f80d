// Backend of the studio page: a model in this browser. Same interface as the server's backend.

const RELOADED = "galip-edge-reloaded";

export class ServerError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** Nothing here asks for a key. */
export function useKey() {}

/**
 * The service worker keeps all files for use offline, and isolates the page, which threads need. It has
 * effect from the next load on.
 */
async function isolated() {
  const workers = navigator.serviceWorker;
  if (!workers || workers.controller) return;
  try {
    await workers.register("sw.js");
    await workers.ready;
  } catch {
    return; // storage is off, say: everything works, but not offline
  }
  if (sessionStorage.getItem(RELOADED)) return;
  sessionStorage.setItem(RELOADED, "1");
  location.reload();
  await new Promise(() => {});
}

const requests = new Map();
let worker = null;
let next = 0;

function call(kind, body, signal) {
  const id = next++;
  const answer = new Promise((resolve, reject) => requests.set(id, { resolve, reject }));
  worker.postMessage({ id, kind, body });
  signal?.addEventListener("abort", () => {
    worker.postMessage({ id, kind: "cancel" });
    requests.get(id)?.reject(new DOMException("stopped", "AbortError"));
    requests.delete(id);
  });
  return answer;
}

function start() {
  worker = new Worker(new URL("browser/worker.js", import.meta.url), { type: "module" });
  worker.addEventListener("message", ({ data: { id, result, error, progress } }) => {
    if (progress) {
      document.getElementById("model").textContent = progress;
      return;
    }
    const request = requests.get(id);
    requests.delete(id);
    if (error) request?.reject(new ServerError(error.status, error.message));
    else request?.resolve(result);
  });
  worker.addEventListener("error", (event) => {
    for (const { reject } of requests.values()) {
      reject(new ServerError(500, `The model cannot run in this browser: ${event.message}`));
    }
    requests.clear();
  });
}

/** The exported model: id, image_size, model_hash. */
export async function servedModel() {
  await isolated();
  if (!worker) start();
  return call("model");
}

/** The PNG of a request, as `requestOf` makes it: {blob, warning}. */
export async function fetchImage(request, signal) {
  return call("image", request, signal);
}
