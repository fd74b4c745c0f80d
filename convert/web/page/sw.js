// Keeps all files of this export for use offline, and isolates the page so that WebAssembly has threads.

const VERSION = "@VERSION@";
const FILES = new Set(["@FILES@"]);

self.addEventListener("install", () => self.skipWaiting());

self.addEventListener("activate", (event) => {
  const tidied = caches.keys().then((names) => {
    const old = names.filter((name) => name.startsWith("galip-edge-") && name !== VERSION);
    return Promise.all(old.map((name) => caches.delete(name)));
  });
  event.waitUntil(tidied.then(() => self.clients.claim()));
});

function isolated(response) {
  if (response.status === 0) return response;
  const headers = new Headers(response.headers);
  headers.set("Cross-Origin-Opener-Policy", "same-origin");
  headers.set("Cross-Origin-Embedder-Policy", "require-corp");
  headers.set("Cross-Origin-Resource-Policy", "same-origin");
  const { status, statusText } = response;
  return new Response(response.body, { status, statusText, headers });
}

async function answer(request, name) {
  const cache = await caches.open(VERSION);
  const kept = await cache.match(name);
  if (kept) return isolated(kept);
  const response = await fetch(request);
  if (response.ok) await cache.put(name, response.clone());
  return isolated(response);
}

self.addEventListener("fetch", (event) => {
  const { request } = event;
  if (request.method !== "GET" || !request.url.startsWith(self.registration.scope)) return;
  const path = request.url.slice(self.registration.scope.length).split(/[?#]/)[0];
  const name = path === "" ? "index.html" : path;
  if (FILES.has(name)) event.respondWith(answer(request, name));
});
