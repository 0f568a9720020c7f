// What may stand at the caret of a recipe, by the JSON Schema of recipes and by the names in the text.

/** Return {from, words}: what may replace the text from `from` to the caret. */
export function complete(schema, text, caret) {
  const at = placeOf(text, caret);
  const nodes = nodesAt(schema, at.path);
  const words = at.key === null ? keysOf(schema, nodes) : valuesOf(schema, nodesAt(schema, [...at.path, at.key]), at, text);
  const matching = words.filter((word) => word.startsWith(at.prefix) && word !== at.prefix);
  return { from: caret - at.prefix.length, words: [...new Set(matching)].sort().slice(0, 12) };
}

/** Where the caret is: the keys around it, the key whose value it is in (or null), and the word so far. */
export function placeOf(text, caret) {
  const lines = text.slice(0, caret).split("\n");
  const line = lines.pop();
  const path = parents(lines, line);
  const open = unclosed(line);
  if (open >= 0) return { ...inFlow(line, open, path) };
  const found = /^(\s*(?:- +)*)(?:([\w-]+) *: *)?("?)([\w./-]*)$/.exec(line);
  if (!found) return { path: [], key: null, prefix: "\u0000" };
  return { path, key: found[2] ?? null, prefix: found[4] };
}

/** The keys that enclose a line, by its indentation; a list's item is "[]". */
function parents(lines, line) {
  const path = [];
  let { column, dashes } = startOf(line);
  if (dashes) [path[0], column] = ["[]", column - dashes];
  let below = dashes > 0; // a list may stand in the column of its key
  for (let i = lines.length - 1; i >= 0 && (column > 0 || below); i--) {
    const start = startOf(lines[i]);
    const key = /^(?:\s|- +)*([\w-]+) *:/.exec(lines[i])?.[1];
    if (key === undefined) continue;
    if (start.dashes && start.column === column && !below) {
      path.unshift("[]"); // an earlier key of the same item, which begins with the dash
      [column, below] = [column - start.dashes, true];
    } else if (start.column < column || (below && start.column === column && !start.dashes)) {
      path.unshift(key);
      [column, below] = [start.column, false];
      if (start.dashes) [column, below] = [(path.unshift("[]"), start.column - start.dashes), true];
    }
  }
  return path;
}

/** The column of a line's first word, and how much of it are dashes of lists. */
function startOf(line) {
  const [, blank, dashes] = /^(\s*)((?:- +)*)/.exec(line);
  return { column: blank.length + dashes.length, dashes: dashes.length };
}

/** The index of the last bracket that the line leaves open, or -1. */
function unclosed(line) {
  const open = [];
  for (let i = 0; i < line.length; i++) {
    if ("{[".includes(line[i])) open.push(i);
    else if ("}]".includes(line[i])) open.pop();
  }
  return open.at(-1) ?? -1;
}

/** The place inside `key: {` or `- {`. */
function inFlow(line, open, path) {
  const before = line.slice(0, open);
  const key = /([\w-]+) *: *$/.exec(before)?.[1];
  const outer = unclosed(before) >= 0 ? inFlow(before, unclosed(before), path).path : path;
  const inner = key ? [...outer, key] : outer;
  const part = line.slice(open + 1).split(",").at(-1);
  const found = /^ *(?:([\w-]+) *: *)?("?)([\w./-]*)$/.exec(part);
  const steps = line[open] === "[" ? [...inner, "[]"] : inner;
  return found ? { path: steps, key: found[1] ?? null, prefix: found[3] } : { path: [], key: null, prefix: "\u0000" };
}

/** The schemas of a place: several where the schema has alternatives. */
export function nodesAt(schema, path) {
  let nodes = alternatives(schema, schema);
  for (const step of path) {
    nodes = nodes.flatMap((node) => {
      const next = step === "[]" ? node.items : (node.properties?.[step] ?? (typeof node.additionalProperties === "object" ? node.additionalProperties : null));
      return next ? alternatives(schema, next) : [];
    });
  }
  return nodes;
}

function alternatives(schema, node, depth = 0) {
  if (depth > 12) return [];
  if (node.$ref) return alternatives(schema, schema.$defs[node.$ref.split("/").at(-1)], depth + 1);
  const several = node.anyOf ?? node.oneOf ?? node.allOf;
  return several ? several.flatMap((each) => alternatives(schema, each, depth + 1)) : [node];
}

const keysOf = (schema, nodes) => nodes.flatMap((node) => Object.keys(node.properties ?? {}));

function valuesOf(schema, nodes, at, text) {
  const listed = nodes.flatMap((node) => [...(node.enum ?? []), ...("const" in node ? [node.const] : []), ...(node.type === "boolean" ? ["true", "false"] : [])]);
  if (["from", "to", "output"].includes(at.key)) return namesUnder("agents", text);
  if (at.key === "model") return [...namesUnder("models", text), ...modelsOf(text)];
  return listed.filter((value) => value !== null).map(String);
}

/** The keys right below a key at the text's margin. */
function namesUnder(section, text) {
  const body = new RegExp(`^${section}:[^\\n]*\\n((?:[ #].*\\n|\\n)*)`, "m").exec(`${text}\n`)?.[1] ?? "";
  const indent = /^( +)[\w-]+ *:/m.exec(body)?.[1];
  return indent ? [...body.matchAll(new RegExp(`^${indent}([\\w-]+) *:`, "gm"))].map((found) => found[1]) : [];
}

const modelsOf = (text) => [...text.matchAll(/\bmodel: *"?([\w./-]+)/g)].map((found) => found[1]);
