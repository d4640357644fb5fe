// The list of episodes: filters, sorting, and only the rows that are in view.

const HEIGHT = 32;
const COLUMNS = [
  ["number", "#"], ["task", "task"], ["seed", "seed"], ["group", "group"], ["policy", "policy"], ["reward", "return"],
  ["turns", "turns"], ["end", "end"],
];
const FILTERS = ["q", "store", "valid", "end", "tools", "policy", "task", "group", "start", "min", "max", "turnsmin", "turnsmax"];

// Everything that a link carries: the view, the episode, filters and the order.
let state = {};
let chosen = []; // rows that pass the filters, in order
let text = { query: "", found: null, done: 0, generation: 0 };

function policyOf(row) {
  return column.version[row] || column.agent[row];
}

function taskOf(row) {
  return column.task[row] || column.env[row];
}

function valueOf(row, name) {
  if (name === "policy") return policyOf(row);
  if (name === "task") return taskOf(row);
  if (name === "number") return row;
  if (name === "reward") return typeof column.reward[row] === "number" ? column.reward[row] : null;
  return column[name][row];
}

function passes(row) {
  const s = state;
  if (s.store && !s.store.split(",").includes(String(column.store[row]))) return false;
  if (s.valid && (s.valid === "invalid") === column.valid[row]) return false;
  if (s.end && column.end[row] !== s.end) return false;
  if (s.tools && !column.tool_errors[row]) return false;
  if (s.policy && policyOf(row) !== s.policy) return false;
  if (s.task && !taskOf(row).toLowerCase().includes(s.task.toLowerCase())) return false;
  if (s.group && String(column.group[row]) !== s.group) return false;
  if (s.start && String(column.start[row]) !== s.start) return false;
  const reward = column.reward[row];
  if (s.min && !(reward >= Number(s.min))) return false;
  if (s.max && (reward === null || !(reward <= Number(s.max)))) return false;
  if (s.turnsmin && column.turns[row] < Number(s.turnsmin)) return false;
  if (s.turnsmax && column.turns[row] > Number(s.turnsmax)) return false;
  return !s.q || text.found === null || text.found.has(row);
}

function choose() {
  chosen = [];
  for (let row = 0; row < rows; row++) if (passes(row)) chosen.push(row);
  const [name, falling] = (state.sort || "").startsWith("-") ? [state.sort.slice(1), true] : [state.sort, false];
  if (name) {
    const keys = new Map(chosen.map((row) => [row, valueOf(row, name)]));
    chosen.sort((a, b) => {
      const x = keys.get(a), y = keys.get(b);
      if (x === y) return a - b;
      if (x === null) return 1; // what has no value stands last in both orders
      if (y === null) return -1;
      return (x < y ? -1 : 1) * (falling ? -1 : 1);
    });
  }
}

function searchText() {
  const query = state.q || "";
  if (query === text.query) return;
  const generation = text.generation + 1;
  text = { query, found: query ? new Set() : null, done: 0, generation };
  if (!query) return;
  const tell = (found, done) => { text.found = found; text.done = done; refreshList(); };
  search(query, tell, () => text.generation !== generation).catch((error) => say(`search: ${error.message}`));
}

function field(label, control) {
  return h("label.field", {}, h("span", {}, label), control);
}

function select(name, options, label) {
  const control = h("select", { name, onchange: filtersChanged }, options.map(([value, shown]) => h("option", { value }, visible(shown))));
  return field(label, control);
}

function input(name, label, attributes) {
  return field(label, h("input", { name, autocomplete: "off", oninput: filtersSoon, ...attributes }));
}

function filterForm() {
  const policies = [...new Set(Array.from({ length: rows }, (_, row) => policyOf(row)))].sort();
  const stores = book.stores.map((name, number) => [String(number), name]);
  return h("form", { id: "filters", role: "search", "aria-label": "Filters", onsubmit: (event) => event.preventDefault() },
    input("q", "text", { type: "search", placeholder: "search all text" }),
    stores.length > 1 && select("store", [["", "all stores"], ...stores], "store"),
    policies.length > 1 && select("policy", [["", "all policies"], ...policies.map((name) => [name, name || "(none)"])], "policy"),
    select("valid", [["", "all"], ["valid", "valid"], ["invalid", "invalid"]], "valid"),
    select("end", [["", "any end"], ["terminated", "terminated"], ["truncated", "truncated"], ["not ended", "not ended"]], "end"),
    input("task", "task", {}),
    input("min", "return from", { inputmode: "decimal" }), input("max", "to", { inputmode: "decimal" }),
    input("turnsmin", "turns from", { inputmode: "numeric" }), input("turnsmax", "to", { inputmode: "numeric" }),
    h("label.check", {}, h("input", { type: "checkbox", name: "tools", value: "1", onchange: filtersChanged }), "tool errors"),
    h("button.small", { type: "button", onclick: clearFilters }, "clear"),
  );
}

function filtersSoon() {
  clearTimeout(filtersSoon.timer);
  filtersSoon.timer = setTimeout(filtersChanged, 200);
}

function filtersChanged() {
  clearTimeout(filtersSoon.timer);
  const change = {};
  for (const control of $("filters").elements) {
    if (control.name) change[control.name] = control.type === "checkbox" ? (control.checked ? control.value : "") : control.value;
  }
  go(change, true);
}

function clearFilters() {
  go(Object.fromEntries(FILTERS.map((name) => [name, ""])), true);
}

function fillFilters() {
  for (const control of $("filters").elements) {
    if (!control.name || control === document.activeElement) continue;
    const value = state[control.name] || "";
    if (control.type === "checkbox") control.checked = value === control.value;
    else if (control.tagName !== "SELECT" || [...control.options].some((option) => option.value === value)) control.value = value;
  }
}

function sortBy(name) {
  go({ sort: state.sort === name ? `-${name}` : state.sort === `-${name}` ? "" : name }, true);
}

function listPane() {
  const header = h("div.row.header", { role: "row", "aria-rowindex": 1 }, COLUMNS.map(([name, label]) =>
    h(`div.cell.${name}`, { role: "columnheader", id: `column-${name}` },
      h("button", { type: "button", onclick: () => sortBy(name) }, label))));
  const body = h("div", { id: "rows", role: "rowgroup" });
  const scroller = h("div", { id: "scroller", role: "grid", tabindex: 0, "aria-label": "Episodes", "aria-colcount": COLUMNS.length, onscroll: drawRows },
    h("div", { role: "rowgroup" }, header), body);
  return [filterForm(), h("p", { id: "count", role: "status" }), scroller];
}

function refreshList() {
  choose();
  const active = FILTERS.some((name) => state[name]);
  const searching = state.q && text.done < rows ? `, searched ${text.done.toLocaleString("en")} of ${rows.toLocaleString("en")}` : "";
  $("count").textContent = `${count(chosen.length, "episode")}${active ? ` of ${rows.toLocaleString("en")}` : ""}${searching}`;
  for (const [name] of COLUMNS) {
    const order = state.sort === name ? "ascending" : state.sort === `-${name}` ? "descending" : "none";
    $(`column-${name}`).setAttribute("aria-sort", order);
  }
  $("scroller").setAttribute("aria-rowcount", chosen.length + 1);
  drawRows();
}

// Draws the rows in view and a few around them; the rest is empty height.
function drawRows() {
  const scroller = $("scroller"), body = $("rows");
  if (!scroller) return;
  const first = Math.max(0, Math.floor(scroller.scrollTop / HEIGHT) - 8);
  const last = Math.min(chosen.length, Math.ceil((scroller.scrollTop + scroller.clientHeight) / HEIGHT) + 8);
  body.style.setProperty("height", `${Math.max(chosen.length, 1) * HEIGHT}px`);
  const current = rowOf(state.e);
  show(body, chosen.slice(first, last).map((row, at) => drawRow(row, first + at, row === current)));
  if (!chosen.length) show(body, h("div.row", { role: "row" }, h("div.cell", { role: "gridcell" }, rows ? "no episode passes the filters" : "no episodes")));
}

function drawRow(row, place, current) {
  const classes = ["div", "row", current && "current", !column.valid[row] && "invalid"].filter(Boolean).join(".");
  const cell = (name, shown) => h(`div.cell.${name}`, { role: "gridcell" }, shown);
  const element = h(classes, { role: "row", "aria-rowindex": place + 2, "aria-selected": String(current), onclick: () => openRow(row) },
    cell("number", h("a", { href: link({ e: nameOf(row), v: state.v === "episode" ? "episode" : "" }), tabindex: -1 }, String(column.number[row]))),
    cell("task", visible(taskOf(row))), cell("seed", String(column.seed[row])), cell("group", String(column.group[row])),
    cell("policy", visible(policyOf(row))),
    cell("reward", column.valid[row] ? figure(column.reward[row]) : "invalid"),
    cell("turns", String(column.turns[row])),
    cell("end", column.error[row] !== null ? "error" : column.end[row] + (column.tool_errors[row] ? `, ${count(column.tool_errors[row], "tool error")}` : "")));
  element.style.setProperty("top", `${place * HEIGHT}px`);
  return element;
}

function openRow(row) {
  go({ e: nameOf(row), v: ["episode", "group", "start"].includes(state.v) ? state.v : "episode", d: "" });
}

// The next or previous episode of the list, kept in view.
function move(step) {
  if (!chosen.length) return;
  const at = chosen.indexOf(rowOf(state.e));
  const next = Math.min(chosen.length - 1, Math.max(0, at < 0 ? 0 : at + step));
  const scroller = $("scroller"), top = next * HEIGHT;
  if (top < scroller.scrollTop) scroller.scrollTop = top;
  else if (top + 2 * HEIGHT > scroller.scrollTop + scroller.clientHeight) scroller.scrollTop = top + 2 * HEIGHT - scroller.clientHeight;
  openRow(chosen[next]);
}
