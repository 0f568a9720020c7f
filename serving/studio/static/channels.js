// The switches: a channel for every edge, and one switch for all.

import { h, replace } from "/studio/dom.js";
import { allEdges, edgeKey } from "/studio/run_state.js";

/** Build the switches. `onChange(channels)` gets a Map of the switched edges, by "sender>receiver". */
export function channelSwitches(graph, onChange) {
  const channels = new Map();
  const controls = new Map();
  const changed = () => onChange(channels);
  const set = (edge, channel) => {
    const key = edgeKey(edge.from, edge.to);
    if (channel === edge.channel) channels.delete(key);
    else channels.set(key, channel);
    controls.get(key).value = channel;
  };
  const edges = allEdges(graph);
  const rows = edges.map((edge) => {
    const control = select(graph.channels, edge.channel, `Channel from ${edge.from} to ${edge.to}`, (channel) => (set(edge, channel), changed()));
    control.dataset.switch = edgeKey(edge.from, edge.to);
    controls.set(edgeKey(edge.from, edge.to), control);
    return h("li", {}, h("span", {}, `${edge.from} → ${edge.to}`), control);
  });
  const setAll = (channel) => {
    for (const edge of edges) set(edge, channel ?? edge.channel);
    changed();
  };
  const all = ["as declared", ...graph.channels].map((name, index) => h("button", { type: "button", class: "small", onclick: () => setAll(index ? name : null) }, name));
  const element = h("div", { class: "switches" }, h("p", { class: "row" }, "All edges: ", all), h("ul", {}, rows));
  return { element, channels, focus: (edge) => controls.get(edgeKey(edge.from, edge.to))?.focus() };
}

function select(names, value, label, onPick) {
  const control = h("select", { "aria-label": label, onchange: () => onPick(control.value) });
  replace(control, names.map((name) => h("option", { value: name, selected: name === value }, name)));
  return control;
}

/** The switched channels as `POST /runs` takes them. */
export function asBody(channels) {
  return Object.fromEntries([...channels].map(([key, channel]) => [key.replace(">", ":"), channel]));
}
