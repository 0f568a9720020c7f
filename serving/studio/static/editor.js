// The editor of a recipe: line numbers, completion from the schema, and problems at their lines.

import { complete } from "/studio/completion.js";
import { h, replace } from "/studio/dom.js";

const KEYS = { ArrowDown: 1, ArrowUp: -1 };

export class Editor {
  /** `onChange(text)` is called after every change. */
  constructor(text, schema, onChange) {
    this.schema = schema;
    this.onChange = onChange;
    this.words = [];
    this.lines = h("div", { class: "lines", "aria-hidden": "true" });
    this.list = h("ul", { class: "completions", id: "completions", role: "listbox", "aria-label": "Completions", hidden: true });
    this.problems = h("ol", { class: "problems", "aria-label": "Problems of the recipe", "aria-live": "polite" });
    this.area = h("textarea", {
      id: "recipe-text",
      value: text,
      spellcheck: "false",
      wrap: "off",
      rows: "24",
      autocapitalize: "off",
      autocomplete: "off",
      role: "combobox",
      "aria-label": "Recipe in YAML",
      "aria-autocomplete": "list",
      "aria-controls": "completions",
      "aria-expanded": "false",
      oninput: () => this.changed(),
      onscroll: () => this.scrolled(),
      onkeydown: (event) => this.key(event),
      onblur: () => this.close(),
    });
    const help = h("p", { class: "quiet" }, "Ctrl+Space completes; Tab leaves the editor.");
    this.element = h("div", { class: "editor" }, h("div", { class: "sheet" }, this.lines, this.area, this.list), help, this.problems);
    this.number([]);
  }

  get text() {
    return this.area.value;
  }

  set text(value) {
    this.area.value = value;
    this.changed();
  }

  /** Show these problems, at their lines and as a list. */
  show(problems) {
    this.number(problems);
    const items = problems.map((problem) => h("li", {}, h("button", { type: "button", class: "small", onclick: () => this.go(problem) }, problem.line ? `Line ${problem.line}` : "Recipe"), ` ${problem.message}`, problem.hint && h("span", { class: "quiet" }, ` – ${problem.hint}`)));
    replace(this.problems, items);
    this.area.setAttribute("aria-invalid", String(problems.length > 0));
  }

  number(problems) {
    this.shownProblems = problems;
    const wrong = new Map(problems.map((problem) => [problem.line, problem.message]));
    const count = this.text.split("\n").length;
    replace(this.lines, Array.from({ length: count }, (_, index) => h("div", { class: wrong.has(index + 1) ? "wrong" : null, title: wrong.get(index + 1) }, String(index + 1))));
    this.scrolled();
  }

  /** Put the caret where a problem is. */
  go({ line, column }) {
    const before = this.text.split("\n").slice(0, Math.max(line - 1, 0));
    const at = before.reduce((sum, each) => sum + each.length + 1, 0) + Math.max(column - 1, 0);
    this.area.focus();
    this.area.setSelectionRange(at, at);
    this.area.scrollTop = Math.max(line - 6, 0) * this.lineHeight();
  }

  changed() {
    if (this.lines.childElementCount !== this.text.split("\n").length) this.number(this.shownProblems);
    this.onChange(this.text);
    this.suggest(false);
  }

  scrolled() {
    this.lines.scrollTop = this.area.scrollTop;
  }

  key(event) {
    if (event.key === " " && event.ctrlKey) {
      event.preventDefault();
      return this.suggest(true);
    }
    if (this.list.hidden) return;
    if (event.key in KEYS) this.choose((this.chosen + KEYS[event.key] + this.words.length) % this.words.length);
    else if (event.key === "Enter" || event.key === "Tab") this.accept(this.words[this.chosen]);
    else if (event.key === "Escape") this.close();
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  suggest(asked) {
    const caret = this.area.selectionStart;
    const { from, words } = complete(this.schema, this.text, caret);
    this.words = asked || caret - from >= 2 ? words : [];
    this.from = from;
    if (!this.words.length) return this.close();
    const pick = (word) => (event) => (event.preventDefault(), this.accept(word));
    replace(this.list, this.words.map((word, index) => h("li", { id: `word-${index}`, role: "option", onmousedown: pick(word) }, word)));
    this.place(from);
    this.list.hidden = false;
    this.area.setAttribute("aria-expanded", "true");
    this.choose(0);
  }

  choose(index) {
    this.chosen = index;
    [...this.list.children].forEach((item, at) => item.setAttribute("aria-selected", String(at === index)));
    this.area.setAttribute("aria-activedescendant", `word-${index}`);
  }

  accept(word) {
    this.area.setRangeText(word, this.from, this.area.selectionStart, "end");
    this.close();
    this.changed();
    this.close();
  }

  close() {
    this.list.hidden = true;
    this.words = [];
    this.area.setAttribute("aria-expanded", "false");
    this.area.removeAttribute("aria-activedescendant");
  }

  /** Put the list of completions below the place in the text. */
  place(at) {
    const before = this.text.slice(0, at).split("\n");
    const style = getComputedStyle(this.area);
    const pen = document.createElement("canvas").getContext("2d");
    pen.font = style.font;
    const left = this.area.offsetLeft + parseFloat(style.paddingLeft) + pen.measureText(before.at(-1)).width - this.area.scrollLeft;
    const top = parseFloat(style.paddingTop) + before.length * this.lineHeight() - this.area.scrollTop;
    this.list.style.left = `${Math.max(left, 0)}px`;
    this.list.style.top = `${top}px`;
  }

  lineHeight() {
    return parseFloat(getComputedStyle(this.area).lineHeight);
  }
}
