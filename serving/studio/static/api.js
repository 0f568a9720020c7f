// Requests to the server, and its server-sent events.

const KEY = "cachegraph-key";

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** The server could not be reached, or the connection broke. */
export class Unreachable extends Error {
  constructor() {
    super("the server doesn't answer");
  }
}

export function useKey(key) {
  sessionStorage.setItem(KEY, key);
}

/** Ask the server. Throws ApiError for its refusals, Unreachable. */
export async function ask(path, { method = "GET", body, signal, headers = {} } = {}) {
  const response = await send(path, { method, body, signal, headers });
  return response.json();
}

/** Yield the events of a run after the one with the id `last`: {id, type, data}. */
export async function* events(run, last, signal) {
  const headers = { Accept: "text/event-stream" };
  if (last) headers["Last-Event-ID"] = last;
  const response = await send(`/runs/${encodeURIComponent(run)}/events`, { headers, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reached(reader.read(), signal);
      if (done) return;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const event = parse(block);
        if (event) yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function send(path, { method = "GET", body, signal, headers = {} }) {
  const sent = { ...headers };
  const key = sessionStorage.getItem(KEY);
  if (key) sent.Authorization = `Bearer ${key}`;
  if (body !== undefined) sent["Content-Type"] = "application/json";
  const text = body === undefined ? undefined : JSON.stringify(body);
  const response = await reached(fetch(path, { method, body: text, signal, headers: sent, cache: "no-store" }), signal);
  if (response.ok) return response;
  if (response.status === 401) document.dispatchEvent(new CustomEvent("key-needed"));
  throw new ApiError(response.status, await sentence(response));
}

async function reached(promise, signal) {
  try {
    return await promise;
  } catch (error) {
    throw signal?.aborted ? error : new Unreachable();
  }
}

async function sentence(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answered with status ${response.status}`;
  }
}

function parse(block) {
  const event = { id: null, type: "message", data: "" };
  for (const line of block.split("\n")) {
    const colon = line.indexOf(": ");
    if (colon <= 0) continue;
    const [field, value] = [line.slice(0, colon), line.slice(colon + 2)];
    if (field === "id") event.id = value;
    else if (field === "event") event.type = value;
    else if (field === "data") event.data += value;
  }
  return event.data ? { ...event, data: JSON.parse(event.data) } : null;
}
