// One run, or several side by side.

import { ask } from "/studio/api.js";
import { Comparison } from "/studio/comparison.js";
import { h } from "/studio/dom.js";
import { Lane } from "/studio/lane.js";
import { allEdges } from "/studio/run_state.js";

/** Open the view of one run. */
export async function runView(id) {
  const { graph } = await ask(`/runs/${encodeURIComponent(id)}/replay`);
  const lane = new Lane(id, graph, { label: `Run of ${graph.name}` });
  const back = h("a", { href: `#/recipe/${encodeURIComponent(graph.name)}` }, graph.name);
  return { element: h("div", {}, h("p", { class: "path" }, "Recipe ", back), lane.element), close: () => lane.close() };
}

/** Open the view of several runs of one recipe, side by side. */
export async function raceView(ids) {
  const graphs = await Promise.all(ids.map((id) => ask(`/runs/${encodeURIComponent(id)}/replay`)));
  const comparison = new Comparison();
  const lanes = ids.map((id, index) => {
    const label = wayOf(graphs[index].graph, index);
    return new Lane(id, graphs[index].graph, { label, onChange: () => comparison.show(lanes) });
  });
  const name = graphs[0].graph.name;
  const title = h("h1", {}, h("a", { href: `#/recipe/${encodeURIComponent(name)}` }, name), " side by side");
  const element = h("div", {}, title, h("div", { class: "lanes" }, lanes.map((lane) => lane.element)), comparison.element);
  return { element, close: () => lanes.forEach((lane) => lane.close()) };
}

function wayOf(graph, index) {
  const channels = [...new Set(allEdges(graph).map((edge) => edge.channel))];
  return channels.length === 1 ? `Over ${channels[0]}` : `Way ${index + 1}: ${channels.join(" and ")}`;
}
