// A recipe: its graph, its switches, its inputs, its text, and the buttons that run it.

import { ask } from "/studio/api.js";
import { sleep } from "/studio/connection.js";
import { asBody, channelSwitches } from "/studio/channels.js";
import { h, replace, setText } from "/studio/dom.js";
import { recipeText } from "/studio/recipe_text.js";
import { GraphView } from "/studio/graph_view.js";
import { inputsForm } from "/studio/inputs_form.js";
import { Lane } from "/studio/lane.js";
import { ENDED, allEdges, newRun } from "/studio/run_state.js";

/** Open the view of a recipe. */
export async function recipeView(name) {
  const view = new RecipeView(await ask(`/graphs/${encodeURIComponent(name)}`));
  return { element: view.element, close: () => view.close() };
}

class RecipeView {
  constructor(graph) {
    this.served = graph;
    this.path = `/graphs/${encodeURIComponent(graph.name)}`;
    this.lane = null;
    this.trouble = h("p", { class: "trouble", role: "alert" });
    this.place = h("div", { class: "place" });
    this.fields = h("div");
    this.channels = h("section", { "aria-label": "Channels" });
    this.warnings = h("ul", { class: "warnings", "aria-label": "What is dropped" });
    this.runButton = h("button", { class: "main", type: "submit" }, "Run");
    this.text = graph.shows_recipe ? recipeText(graph, (found) => this.takeText(found)) : null;
    this.ways = [wayChoice(graph, "First way", "text"), wayChoice(graph, "Second way", "as switched")];
    const both = h("button", { type: "button", "data-race": true, onclick: () => this.race() }, "Run both ways");
    this.inTurn = h("input", { type: "checkbox" });
    const inTurn = h("label", { class: "check" }, this.inTurn, "one after the other");
    this.raceRow = h("p", { class: "row" }, both, this.ways[0], "against", this.ways[1], inTurn);
    const submit = (event) => (event.preventDefault(), this.start());
    const form = h("form", { class: "run-form", onsubmit: submit }, this.fields, h("p", { class: "row" }, this.runButton), this.raceRow, this.trouble);
    this.element = h(
      "div",
      {},
      h("h1", {}, graph.name),
      graph.description && h("p", { class: "lead" }, graph.description),
      this.place,
      this.warnings,
      h("div", { class: "columns" }, form, this.channels),
      this.text?.element,
    );
    this.show(graph);
  }

  /** Show this graph: the served one, or the one that the changed text gives. */
  show(graph) {
    this.graph = graph;
    this.lane?.close();
    this.lane = null;
    this.drawing?.close();
    this.switches = channelSwitches(graph, () => this.switched());
    const focus = (edge) => this.switches.focus(edge);
    this.drawing = new GraphView(graph, { onAgent: (name) => this.text?.find(name.split("/")[0]), onEdge: focus, label: `Graph of ${graph.name}` });
    this.drawing.update(newRun());
    this.inputs = inputsForm(graph, this.inputs?.texts());
    const hasEdges = allEdges(graph).length > 0;
    replace(this.place, this.drawing.element);
    replace(this.fields, this.inputs.element);
    replace(this.channels, hasEdges && [h("h2", {}, "Channels"), this.switches.element]);
    this.raceRow.hidden = !hasEdges;
    this.warn(graph.warnings);
  }

  warn(warnings) {
    replace(this.warnings, warnings.map((warning) => h("li", {}, warning)));
  }

  /** Take what the server found in the text: a graph, or problems. */
  takeText({ graph, problems, changed }) {
    const runs = problems.length === 0 && (!changed || this.served.runs_changes);
    this.runButton.disabled = !runs;
    setText(this.runButton, changed && runs ? "Run the changed recipe" : "Run");
    for (const control of this.raceRow.querySelectorAll("button")) control.disabled = !runs;
    const note = "This server runs its own recipes only. Start it with --allow-upload to run changed ones.";
    setText(this.trouble, changed && problems.length === 0 && !runs ? note : "");
    if (graph) this.show(graph);
  }

  /** Show the switched channels, and what they drop. */
  async switched() {
    if (!this.drawing.element.isConnected) this.showDrawing();
    this.drawing.setChannels(this.switches.channels);
    const body = { channels: asBody(this.switches.channels), ...this.changedText() };
    try {
      const found = await ask(`${this.path}/check`, { method: "POST", body });
      this.warn(found.graph?.warnings ?? found.problems.map((problem) => problem.message));
    } catch (error) {
      setText(this.trouble, error.message);
    }
  }

  showDrawing() {
    this.lane?.close();
    this.lane = null;
    replace(this.place, this.drawing.element);
  }

  changedText() {
    return this.text?.changed ? { recipe: this.text.value } : {};
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

  /** Start the recipe both ways, at once or one after the other, and show the runs side by side. */
  async race() {
    const [first, second] = this.ways.map(({ value }) => (value === "as switched" ? { channels: asBody(this.switches.channels) } : { every: value }));
    const begun = await this.post(first);
    if (begun && this.inTurn.checked) await this.end(begun.id);
    const runs = begun && [begun, await this.post(second)];
    if (runs?.every(Boolean)) location.hash = `#/race/${runs.map((run) => run.id).join("/")}`;
  }

  /** Wait until a run has ended; its time is then its own. */
  async end(id) {
    setText(this.trouble, "The first way runs alone; the second follows.");
    try {
      while (!this.closed && !ENDED.has((await ask(`/runs/${encodeURIComponent(id)}`)).status)) await sleep(300);
    } catch (error) {
      setText(this.trouble, error.message);
    }
  }

  async post({ channels = {}, every = null }) {
    setText(this.trouble, "");
    try {
      const graph = every ? `${this.served.name}@${every}` : this.served.name;
      const body = { graph, channels, inputs: this.inputs.read(), ...this.changedText() };
      return await ask("/runs", { method: "POST", body });
    } catch (error) {
      setText(this.trouble, error.message);
      return null;
    }
  }

  close() {
    this.closed = true;
    this.lane?.close();
    this.drawing.close();
    this.text?.close();
  }
}

function wayChoice(graph, label, value) {
  const names = [...graph.channels, "as switched"];
  const onlyText = allEdges(graph).every((edge) => edge.channel === "text");
  const chosen = value === "as switched" && onlyText ? "cache" : value;
  return h("select", { "aria-label": label }, names.map((name) => h("option", { value: name, selected: name === chosen }, name)));
}
