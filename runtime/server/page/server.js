// Requests to the server.

const INTERPOLATIONS = "../v1/images/interpolations";
const MODELS = "../v1/models";
const KEY = "galip-edge-key";

export class ServerError extends Error {
  /** @param retryAfter milliseconds, or undefined where a retry cannot succeed */
  constructor(status, message, retryAfter) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

export function useKey(key) {
  sessionStorage.setItem(KEY, key);
}

async function ask(address, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { "Content-Type": "application/json" };
  if (key) headers.Authorization = `Bearer ${key}`;
  let answer;
  try {
    answer = await fetch(address, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(0, "The server does not respond: is it running?", 2000);
  }
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => null);
  const message = said?.error?.message ?? `The server responded with status ${answer.status}.`;
  const wait = answer.status === 429 || answer.status === 503;
  const retryAfter = wait ? 1000 * (answer.headers.get("Retry-After") ?? 1) : undefined;
  throw new ServerError(answer.status, message, retryAfter);
}

/** The served model: id, image_size, model_hash. */
export async function servedModel() {
  const answer = await ask(MODELS);
  return (await answer.json()).data[0];
}

/** The PNG of a request of `requestOf`: {blob, warning}; warning may be null. */
export async function fetchImage(request, signal) {
  const answer = await ask(INTERPOLATIONS, { method: "POST", body: request, signal });
  return { blob: await answer.blob(), warning: answer.headers.get("X-Galip-Edge-Warning") };
}
