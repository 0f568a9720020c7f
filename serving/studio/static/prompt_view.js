// A turn's prompt with its parts by origin, and the tokens of an edge side by side.

import { ask } from "/studio/api.js";
import { h } from "/studio/dom.js";
import { plural } from "/studio/format.js";

const KINDS = {
  template: "text of the template",
  words: "words of an input or a reply",
  grafted: "grafted from another agent's cache",
  fused: "words whose cache a sharer corrected",
};

/** Fetch the prompt of a turn: {tokens, parts, edges}. Throws ApiError if the server has it no more. */
export function fetchPrompt(run, turn) {
  return ask(`/runs/${encodeURIComponent(run)}/prompt?turn=${encodeURIComponent(turn)}`);
}

/** Draw a prompt: every part has the colour of its origin, and names it. */
export function drawPrompt(prompt) {
  const present = Object.keys(KINDS).filter((kind) => prompt.parts.some((part) => part.kind === kind));
  const legend = h("p", { class: "legend" }, present.map((kind) => h("span", {}, h("mark", { class: kind }, kind), ` ${KINDS[kind]}`)));
  const parts = prompt.parts.map((part) => h("mark", { class: part.kind, title: about(part) }, part.text, part.kind !== "template" && h("span", { class: "sr" }, ` (${about(part)}) `)));
  return [legend, h("div", { class: "prompt", tabindex: "0", role: "region", "aria-label": "Prompt" }, parts)];
}

function about(part) {
  const whose = part.source ? ` of ${part.source}` : "";
  const by = part.by.length ? ` by ${part.by.join(" and ")}` : "";
  return `${KINDS[part.kind]}${whose}${by}${part.tokens ? `, ${plural(part.tokens, "token")}` : ""}`;
}

/** Draw an alignment: each receiver token over the sharer's tokens that stand for it. */
export function drawAlignment(alignment, edge) {
  const by = new Map();
  for (const [receiver, sharer] of alignment.pairs) by.set(receiver, [...(by.get(receiver) ?? []), sharer]);
  const used = alignment.kind === "graft" ? [...by.keys()] : alignment.receiver.map((_, index) => index);
  const columns = used.map((index) => column(alignment, index, by.get(index)));
  const told = `${plural(alignment.pairs.length, "pair")} of ${plural(alignment.receiver.length, "token")} of ${edge.to} and ${plural(alignment.sharer.length, "token")} of ${edge.from}`;
  return [
    h("h3", {}, alignment.kind === "graft" ? `Grafted: tokens of ${edge.from} at positions of ${edge.to}` : `Fused: tokens of ${edge.to} over those of ${edge.from}`),
    h("p", { class: "quiet" }, told, alignment.cut && ", of which the first are shown"),
    h("div", { class: "tokens", tabindex: "0", role: "region", "aria-label": told }, columns),
  ];
}

function column(alignment, index, sharers) {
  const top = alignment.kind === "graft" ? String(index) : visible(alignment.receiver[index]);
  const below = sharers ? sharers.map((at) => visible(alignment.sharer[at])).join(" ") : "";
  const title = sharers ? `position ${index}: ${JSON.stringify(alignment.receiver[index])} over ${JSON.stringify(below)}` : `position ${index}: not shared`;
  return h("span", { class: sharers ? "pair" : "pair alone", title }, h("span", {}, top), h("span", {}, below || "·"));
}

const visible = (text) => text.replaceAll(" ", "␣").replaceAll("\n", "⏎") || "∅";

/** Draw gates and residuals: by layer, how much a fuser changed keys and values. */
export function drawLayers(residuals) {
  const layers = Object.entries(residuals);
  if (!layers.length) return null;
  const most = Math.max(...layers.flatMap(([, pair]) => pair.map((value) => value ?? 0)), 1e-9);
  const rows = layers.map(([layer, [keys, values]]) => h("tr", {}, h("th", { scope: "row" }, layer), meter(keys, most), meter(values, most)));
  const head = h("tr", {}, ["Layer", "Keys", "Values"].map((name) => h("th", { scope: "col" }, name)));
  return [
    h("h3", {}, "Corrections by layer"),
    h("p", { class: "quiet" }, "The norm of the correction in parts of the norm that it corrects. A closed gate corrects nothing."),
    h("table", { class: "layers" }, h("thead", {}, head), h("tbody", {}, rows)),
  ];
}

function meter(value, most) {
  if (value === null) return h("td", { class: "quiet" }, "gate closed");
  const bar = h("i");
  bar.style.width = `${(100 * value) / most}%`;
  return h("td", {}, h("span", { class: "meter" }, bar), ` ${value.toPrecision(2)}`);
}
