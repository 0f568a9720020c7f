// Follow a run until it ends, over lost connections and restarts of the server.

import { Unreachable, ask, events } from "/studio/api.js";
import { found, lost, sleep } from "/studio/connection.js";
import { ENDED } from "/studio/run_state.js";

const SHORTEST = 400; // milliseconds before the first try to connect again
const LONGEST = 6000;

/**
 * Follow a run. `onReset()` is called if all events come again, `onEvent(event)` for each one, `onDetails(run)` with the
 * stored run when its events end, and `onError(error)` if the server refuses.
 */
export function watch(id, { onReset, onEvent, onDetails, onError }) {
  const stopped = new AbortController();
  follow(id, stopped.signal, { onReset, onEvent, onDetails, onError });
  return () => stopped.abort();
}

async function follow(id, signal, to) {
  const place = { epoch: null, last: null };
  let wait = SHORTEST;
  while (!signal.aborted) {
    try {
      for await (const event of events(id, place.last, signal)) {
        found();
        wait = SHORTEST;
        if (event.type === "run_stored") await replay(id, signal, place, to);
        else take(event, place, to);
      }
      const run = await ask(`/runs/${encodeURIComponent(id)}`, { signal });
      // It may have ended after the events did, in a server that has just resumed it.
      if (ENDED.has(run.status) && !place.ended) await replay(id, signal, place, to);
      to.onDetails(run);
      if (ENDED.has(run.status)) return;
    } catch (error) {
      if (signal.aborted) return;
      if (!(error instanceof Unreachable) && error.status !== 503) return to.onError(error);
      lost();
    }
    await sleep(wait);
    wait = Math.min(wait * 2, LONGEST);
  }
}

function take(event, place, to) {
  const epoch = event.id.split("-")[0];
  const isOther = place.epoch === null ? place.stored !== undefined : place.epoch !== epoch;
  if (isOther) to.onReset(); // another process: it sends all events from the first
  Object.assign(place, { epoch, last: event.id, ended: event.data.type === "run_finished" });
  to.onEvent(event.data);
}

async function replay(id, signal, place, to) {
  const { events: stored, last } = await ask(`/runs/${encodeURIComponent(id)}/replay`, { signal });
  if (last) Object.assign(place, { epoch: last.split("-")[0], last }); // its events continue there
  const known = `${stored.length} ${last}`;
  if (place.stored === known) return; // nothing new
  place.stored = known;
  to.onReset();
  for (const event of stored) to.onEvent(event);
}
