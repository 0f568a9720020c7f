// The fields for a recipe's inputs.

import { h } from "/studio/dom.js";

/**
 * Build the fields; `kept` are texts by name that they begin with. `read()` returns the inputs, and throws an Error whose
 * message names the wrong one; `texts()` returns what the fields hold.
 */
export function inputsForm(graph, kept = {}) {
  const fields = Object.entries(graph.inputs).map(([name, entry]) => ({ name, entry, ...field(name, entry, kept[name]) }));
  const element = h("div", { class: "inputs" }, fields.map((each) => each.element));
  const read = () => Object.fromEntries(fields.map((each) => [each.name, each.read()]).filter(([, value]) => value !== undefined));
  const texts = () => Object.fromEntries(fields.map((each) => [each.name, each.text()]));
  return { element, read, texts };
}

function field(name, entry, kept) {
  const id = `input-${name}`;
  const usual = entry.default;
  const about = [entry.description, usual !== null && usual !== undefined && "Optional."].filter(Boolean).join(" ");
  const isText = entry.type === "string";
  const value = kept ?? (usual === null || usual === undefined ? "" : isText ? String(usual) : JSON.stringify(usual));
  const control = entry.type === "boolean" ? choice(id, value) : h("textarea", { id, rows: isText ? "3" : "2", value, spellcheck: isText, "aria-describedby": `${id}-about` });
  const element = h("div", { class: "field" }, h("label", { htmlFor: id }, name), control, h("p", { id: `${id}-about`, class: "quiet" }, isText ? about : `${about} (JSON: ${entry.type})`));
  return { element, read: () => parse(name, entry, control.value), text: () => control.value };
}

function choice(id, value) {
  return h("select", { id }, ["true", "false"].map((each) => h("option", { value: each, selected: each === value }, each)));
}

function parse(name, entry, text) {
  if (text === "" && entry.default !== null && entry.default !== undefined) return undefined;
  if (entry.type === "string") return text;
  try {
    return JSON.parse(text);
  } catch {
    throw new Error(`the input '${name}' must be JSON of type ${entry.type}`);
  }
}
