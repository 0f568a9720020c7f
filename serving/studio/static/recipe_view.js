// A recipe: its graph, its switches, its inputs, and the buttons that run it.

import { ask } from "/studio/api.js";
import { asBody, channelSwitches } from "/studio/channels.js";
import { h, replace, setText } from "/studio/dom.js";
import { GraphView } from "/studio/graph_view.js";
import { inputsForm } from "/studio/inputs_form.js";
import { Lane } from "/studio/lane.js";
import { newRun } from "/studio/run_state.js";

/** Open the view of a recipe. */
export async function recipeView(name) {
  const graph = await ask(`/graphs/${encodeURIComponent(name)}`);
  const view = new RecipeView(graph);
  return { element: view.element, close: () => view.close() };
}

class RecipeView {
  constructor(graph) {
    this.graph = graph;
    this.lane = null;
    this.switches = channelSwitches(graph, () => this.drawing.setChannels(this.switches.channels));
    const focus = (edge) => this.switches.focus(edge);
    this.drawing = new GraphView(graph, { onAgent: () => {}, onEdge: focus, label: `Graph of ${graph.name}` });
    this.drawing.update(newRun());
    this.inputs = inputsForm(graph);
    this.trouble = h("p", { class: "trouble", role: "alert" });
    this.button = h("button", { class: "main", type: "submit" }, "Run");
    this.ways = [wayChoice(graph, "First way", "text"), wayChoice(graph, "Second way", "as switched")];
    const both = [h("button", { type: "button", "data-race": true, onclick: () => this.race() }, "Run both ways"), this.ways[0], "against", this.ways[1]];
    const form = h(
      "form",
      { class: "run-form", onsubmit: (event) => (event.preventDefault(), this.start()) },
      this.inputs.element,
      h("p", { class: "row" }, this.button),
      graph.edges.length > 0 && h("p", { class: "row" }, both),
      this.trouble,
    );
    this.place = h("div", { class: "place" }, this.drawing.element);
    this.element = h(
      "div",
      {},
      h("h1", {}, graph.name),
      graph.description && h("p", { class: "lead" }, graph.description),
      this.place,
      graph.warnings.length > 0 && h("ul", { class: "warnings" }, graph.warnings.map((warning) => h("li", {}, warning))),
      h("div", { class: "columns" }, form, graph.edges.length > 0 && h("section", { "aria-label": "Channels" }, h("h2", {}, "Channels"), this.switches.element)),
    );
  }

  async start() {
    const run = await this.post({ channels: asBody(this.switches.channels) });
    if (!run) return;
    this.lane?.close();
    const { graph } = await ask(`/runs/${encodeURIComponent(run.id)}/replay`);
    this.lane = new Lane(run.id, graph, { label: "Run" });
    replace(this.place, this.lane.element);
    this.lane.element.scrollIntoView({ block: "nearest" });
  }

  /** Start the recipe both ways at once, and show the runs side by side. */
  async race() {
    const bodies = this.ways.map(({ value }) => (value === "as switched" ? { channels: asBody(this.switches.channels) } : { every: value }));
    const runs = await Promise.all(bodies.map((body) => this.post(body)));
    if (runs.every(Boolean)) location.hash = `#/race/${runs.map((run) => run.id).join("/")}`;
  }

  async post({ channels = {}, every = null }) {
    setText(this.trouble, "");
    try {
      const graph = every ? `${this.graph.name}@${every}` : this.graph.name;
      return await ask("/runs", { method: "POST", body: { graph, channels, inputs: this.inputs.read() } });
    } catch (error) {
      setText(this.trouble, error.message);
      return null;
    }
  }

  close() {
    this.lane?.close();
    this.drawing.observer.disconnect();
  }
}

function wayChoice(graph, label, value) {
  const names = [...graph.channels, "as switched"];
  const onlyText = graph.edges.every((edge) => edge.channel === "text");
  const chosen = value === "as switched" && onlyText ? "cache" : value;
  return h("select", { "aria-label": label }, names.map((name) => h("option", { value: name, selected: name === chosen }, name)));
}
