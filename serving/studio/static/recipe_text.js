// The text of a recipe in the editor, checked by the server as it changes.

import { ask } from "/studio/api.js";
import { h, replace, setText } from "/studio/dom.js";
import { Editor } from "/studio/editor.js";

const PAUSE = 350; // milliseconds without a keystroke before the server checks the text

/** Build the section. `onCheck({graph, problems, changed})` gets what the server finds. */
export function recipeText(graph, onCheck) {
  return new RecipeText(graph, onCheck);
}

class RecipeText {
  constructor(graph, onCheck) {
    this.path = `/graphs/${encodeURIComponent(graph.name)}`;
    this.onCheck = onCheck;
    this.body = h("div", {}, h("p", { class: "quiet" }, "Loading ..."));
    this.status = h("p", { class: "quiet", role: "status" });
    const undo = () => (this.editor.text = this.original);
    this.undo = h("button", { type: "button", class: "small", hidden: true, onclick: undo }, "Undo all changes");
    const head = h("p", { class: "row" }, this.status, this.undo);
    const opened = () => this.element.open && (this.loading ??= this.load());
    this.element = h("details", { class: "recipe-text", ontoggle: opened }, h("summary", {}, "Recipe as YAML"), this.body, head);
  }

  get value() {
    return this.editor?.text ?? "";
  }

  get changed() {
    return Boolean(this.editor) && this.editor.text !== this.original;
  }

  async load() {
    try {
      const [{ recipe }, schema] = await Promise.all([ask(`${this.path}/recipe`), ask("/recipe.schema.json")]);
      this.original = recipe;
      this.editor = new Editor(recipe, schema, () => this.later());
      replace(this.body, this.editor.element);
    } catch (error) {
      this.loading = null;
      replace(this.body, h("p", { class: "trouble", role: "alert" }, error.message));
    }
  }

  later() {
    this.undo.hidden = !this.changed;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.check(), PAUSE);
  }

  async check() {
    const text = this.editor.text;
    try {
      const found = await ask(`${this.path}/check`, { method: "POST", body: this.changed ? { recipe: text } : {} });
      if (this.closed || text !== this.editor.text) return;
      this.editor.show(found.problems);
      const count = found.problems.length;
      setText(this.status, count ? `${count === 1 ? "One problem" : `${count} problems`}; the drawing shows the last correct text.` : "No problems.");
      this.onCheck({ ...found, changed: this.changed });
    } catch (error) {
      setText(this.status, error.message);
    }
  }

  /** Open the editor with the caret at an agent. */
  async find(agent) {
    this.element.open = true;
    await (this.loading ??= this.load());
    const lines = this.editor?.text.split("\n") ?? [];
    const line = lines.findIndex((each) => each.trimStart().startsWith(`${agent}:`));
    if (line >= 0) this.editor.go({ line: line + 1, column: 1 });
  }

  close() {
    this.closed = true;
    clearTimeout(this.timer);
  }
}
