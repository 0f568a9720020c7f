// The time view: a bar for every turn by agent, and when each model was busy.

import { h, replace } from "/studio/dom.js";
import { seconds } from "/studio/format.js";

const PHASES = ["queued", "transfer", "prefill", "fuse", "decode"];
const NAMES = { queued: "waits for the model", transfer: "moves caches", prefill: "reads", fuse: "fuses", decode: "writes" };

/** Draw the turns of a run up to `now`, in seconds since it began. */
export function drawTimeline(element, run, now) {
  const turns = [...run.turns.values()];
  if (!turns.length) return replace(element, h("p", { class: "quiet" }, "No agent has started yet."));
  const end = Math.max(now, ...turns.map((turn) => turn.ended ?? 0), 0.001);
  const rows = new Map();
  const models = new Map();
  for (const turn of turns) {
    push(rows, turn.agent, turn);
    if (turn.model) push(models, turn.model, turn);
  }
  const legend = h("p", { class: "legend" }, PHASES.map((phase) => h("span", { class: "key" }, h("i", { class: phase }), NAMES[phase])));
  return replace(
    element,
    h("div", { class: "bars" }, [...rows].map(([agent, its]) => row(agent, its, end, now))),
    models.size > 0 && h("div", { class: "bars models" }, [...models].map(([model, its]) => row(model, its, end, now, true))),
    axis(end),
    legend,
  );
}

function row(name, turns, end, now, whole = false) {
  const track = h("span", { class: "track" });
  for (const turn of turns) track.append(...(whole ? [bar("busy", turn.started, turn.ended ?? now, end)] : barsOf(turn, end, now)));
  const told = turns.map((turn) => describe(turn, now)).join("; ");
  const label = h("span", { class: "label", title: name }, name);
  return h("div", { class: "bar-row", role: "img", "aria-label": `${name}: ${told}` }, label, track);
}

function barsOf(turn, end, now) {
  if (turn.timing) {
    let at = turn.started;
    const bars = [];
    for (const phase of PHASES) {
      if (turn.timing[phase] > 0) bars.push(bar(phase, at, at + turn.timing[phase], end));
      at += turn.timing[phase] ?? 0;
    }
    return bars.length ? bars : [bar("other", turn.started, turn.ended, end)];
  }
  const stop = turn.ended ?? now;
  if (turn.first === null) return [bar(turn.ended === null ? "prefill" : "other", turn.started, stop, end)];
  return [bar("prefill", turn.started, turn.first, end), bar("decode", turn.first, stop, end)];
}

function bar(kind, from, to, end) {
  const node = h("i", { class: kind, title: `${NAMES[kind] ?? "works"}: ${seconds(to - from)}` });
  node.style.left = `${(100 * from) / end}%`;
  node.style.width = `${Math.max((100 * (to - from)) / end, 0.3)}%`;
  return node;
}

function describe(turn, now) {
  if (!turn.timing) return `${turn.turn} ${seconds((turn.ended ?? now) - turn.started)}`;
  const parts = PHASES.filter((phase) => turn.timing[phase] > 0).map((phase) => `${NAMES[phase]} ${seconds(turn.timing[phase])}`);
  return `${turn.turn} ${parts.join(", ") || seconds(turn.timing.total)}`;
}

function axis(end) {
  const marks = [0, 0.5, 1].map((part) => {
    const mark = h("span", {}, seconds(part * end));
    mark.style.left = `${100 * part}%`;
    return mark;
  });
  return h("div", { class: "axis", "aria-hidden": "true" }, h("span", { class: "track" }, marks));
}

function push(map, key, value) {
  if (!map.has(key)) map.set(key, []);
  map.get(key).push(value);
}
