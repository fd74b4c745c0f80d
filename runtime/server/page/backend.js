// Backend of this page: the server it was loaded from. A web export has another backend.

export { fetchImage, ServerError, servedModel, useKey } from "./server.js";
