// What makes images for this page: the server that it came from. An export for browsers has another.

export { fetchImage, ServerError, servedModel, useKey } from "./server.js";
