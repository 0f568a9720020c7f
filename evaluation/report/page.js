"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const make = (tag, className, text) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const words = (className, text, tag = "div") => {
    const element = make(tag, className, text);
    element.dir = "auto";
    return element;
  };

  // Tables sort by a column's heading: numbers by their value, others as text.
  const key = (row, column) => {
    const cell = row.cells[column];
    return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent;
  };
  const compare = (a, b) => {
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
    return typeof a === "number" ? a - b : a.localeCompare(b);
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = make("button", "", head.textContent);
      button.type = "button";
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const down = head.ariaSort === "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.ariaSort = down ? "descending" : "ascending";
        const rows = [...table.tBodies[0].rows].sort((a, b) => compare(key(a, column), key(b, column)));
        table.tBodies[0].append(...(down ? rows.reverse() : rows));
      });
    });
  }

  // The examples of two variants, filtered, a page at a time.
  if (!data.variants.length) return;
  const RIGHT = 1, WRONG = 0;
  let page = 0;
  for (const side of ["left", "right"]) {
    $(side).append(...data.variants.map((name) => new Option(name, name, name === data[side], name === data[side])));
  }
  const searchable = data.rows.map((row) => {
    const parts = [row.id, row.right, ...row.asked.map(([, text]) => text)];
    for (const [reply, , picked, error] of row.turns) parts.push(reply, picked, error);
    return parts.join("\n").toLowerCase();
  });
  const filters = {
    all: () => true,
    left: (a, b) => a === RIGHT && b === WRONG,
    right: (a, b) => a === WRONG && b === RIGHT,
    wrong: (a, b) => a === WRONG && b === WRONG,
    both: (a, b) => a === RIGHT && b === RIGHT,
  };
  const places = () => [$("left").selectedIndex, $("right").selectedIndex];
  const fits = (filter, row) => filters[filter](...places().map((place) => row.turns[place][1]));

  const count = () => {
    const chosen = $("which").value || "all";
    const names = {
      all: "all", left: `only ${$("left").value} right`, right: `only ${$("right").value} right`,
      wrong: "both wrong", both: "both right",
    };
    const known = data.judged ? Object.keys(names) : ["all"];
    $("which").replaceChildren(...known.map((name) => {
      const found = data.rows.filter((row) => fits(name, row)).length;
      return new Option(`${names[name]} (${found.toLocaleString("en")})`, name, name === chosen, name === chosen);
    }));
  };
  const asked = (row) => row.asked.map(([name, text]) => {
    if (text.length <= 160 && name !== "choices") return words("text", text);
    const details = make("details");
    details.append(make("summary", "", name), words("text", text));
    return details;
  });
  const turn = ([reply, right, picked, error]) => {
    const cell = make("td");
    if (error) cell.append(make("span", "mark wrong", "failed"), " ", words("text", error, "span"));
    if (right !== null) cell.append(make("span", right ? "mark right" : "mark wrong", right ? "✓ right" : "✗ wrong"));
    if (picked) cell.append(words("picked", `likes best: ${picked}`));
    if (reply) cell.append(words("text", reply));
    return cell;
  };
  const line = (row) => {
    const line = make("tr");
    const head = make("th", "", row.id);
    head.scope = "row";
    const question = make("td");
    question.append(...asked(row));
    line.append(head, question, words("text", row.right, "td"), ...places().map((place) => turn(row.turns[place])));
    return line;
  };
  const show = () => {
    const wanted = $("search").value.trim().toLowerCase();
    const found = data.rows.filter((row, at) => fits($("which").value, row) && searchable[at].includes(wanted));
    const size = Number($("size").value);
    const last = Math.max(0, Math.ceil(found.length / size) - 1);
    page = Math.min(page, last);
    $("rows").replaceChildren(...found.slice(page * size, (page + 1) * size).map(line));
    $("left-name").textContent = $("left").value;
    $("right-name").textContent = $("right").value;
    const first = found.length ? page * size + 1 : 0;
    const end = Math.min((page + 1) * size, found.length);
    $("shown").textContent = `${first} to ${end} of ${found.length.toLocaleString("en")} examples`;
    $("page").textContent = `page ${page + 1} of ${last + 1}`;
    $("before").disabled = page === 0;
    $("after").disabled = page === last;
  };
  const again = () => { page = 0; count(); show(); };
  let waiting;
  $("search").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(again, 120); });
  for (const id of ["left", "right", "which", "size"]) $(id).addEventListener("change", again);
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  $("before").addEventListener("click", () => { page -= 1; show(); });
  $("after").addEventListener("click", () => { page += 1; show(); });
  $("explorer").hidden = false;
  again();
})();
