// The banner that says whether the server answers, and the check behind it.

import { Unreachable, ask } from "/studio/api.js";

const EVERY = 4000; // milliseconds between checks
const returned = new Set(); // called when the server answers again

let gone = false;

/** Call `listener` whenever the server answers again after it was gone. Returns a function that ends this. */
export function onReturn(listener) {
  returned.add(listener);
  return () => returned.delete(listener);
}

/** Report that a request could not reach the server. */
export function lost() {
  if (gone) return;
  gone = true;
  show("The server doesn't answer. Trying again until it does; nothing that it stored is lost.");
}

/** Report that the server answers. */
export function found() {
  if (!gone) return;
  gone = false;
  show("");
  for (const listener of [...returned]) listener();
}

function loading() {
  gone = true;
  show("The server is loading its models.");
}

/** Watch the server as long as the page is open. */
export async function watchServer() {
  for (;;) {
    await sleep(gone ? EVERY / 4 : EVERY);
    if (document.hidden) continue;
    try {
      await ask("/ready");
      found();
    } catch (error) {
      if (error instanceof Unreachable) lost();
      else if (error.status === 503) loading();
    }
  }
}

export function sleep(milliseconds) {
  return new Promise((done) => setTimeout(done, milliseconds));
}

function show(words) {
  const banner = document.getElementById("banner");
  banner.textContent = words;
  banner.hidden = !words;
}
