// Shared helpers.

export const byId = (id) => document.getElementById(id);
export const percent = (share) => `${Math.round(share * 100)} %`;
export const wait = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));
