// Where everything meets: links, keys, themes, and a live run.

const KEYS = [
  ["j, k", "next, previous episode"], ["/", "search all text"], ["t", "tokens"], ["e", "conversation"], ["g", "its group, side by side"],
  ["s", "all episodes with its start"], ["d", "differences from the next of its group"], ["r", "runs"], ["Escape", "back to the list"], ["?", "this help"],
];
const VIEWS = { episode: 1, group: 1, start: 1, diff: 1, runs: 1, results: 1 };
let drawing = 0;

function readHash() {
  return Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
}

// The address of a state: the present one with changes.
function link(change) {
  const next = new URLSearchParams();
  for (const [key, value] of Object.entries({ ...state, ...change })) if (value) next.set(key, value);
  return `#${next}`;
}

function go(change, silently = false) {
  const address = link(change);
  if (address === (location.hash || "#")) return;
  if (silently) history.replaceState(null, "", address);
  else history.pushState(null, "", address);
  draw();
}

function draw() {
  const before = state;
  state = readHash();
  if (!VIEWS[state.v]) state.v = "";
  if (before.sort !== state.sort || FILTERS.some((name) => before[name] !== state[name])) {
    fillFilters();
    searchText();
    if (before.sort !== undefined || Object.keys(before).length) $("scroller").scrollTop = 0;
  }
  refreshList();
  for (const tab of document.querySelectorAll("#tabs a")) {
    const here = tab.dataset.view === (["runs", "results"].includes(state.v) ? state.v : "");
    if (here) tab.setAttribute("aria-current", "page");
    else tab.removeAttribute("aria-current");
    tab.setAttribute("href", link({ v: tab.dataset.view }));
  }
  drawDetail();
}

async function drawDetail() {
  const place = $("detail"), turn = ++drawing, row = rowOf(state.e), current = () => turn === drawing;
  document.body.dataset.view = state.v || (row >= 0 ? "episode" : "list");
  const full = state.v === "runs" || state.v === "results";
  $("list").hidden = full;
  try {
    if (state.v === "runs") showRuns(place);
    else if (state.v === "results") showResults(place);
    else if (row < 0) show(place, welcome());
    else {
      const steps = h("nav", { id: "views", "aria-label": "Views of this episode" },
        [["episode", "conversation"], ["group", "group"], ["start", "same start"]].map(([name, label]) =>
          h("a", { href: link({ v: name, d: "" }), "aria-current": (state.v || "episode") === name ? "page" : null }, label)));
      const inner = h("div");
      show(place, steps, inner);
      if (state.v === "group") await showGroup(inner, row, current, false);
      else if (state.v === "start") await showGroup(inner, row, current, true);
      else if (state.v === "diff" && rowOf(state.d) >= 0) await showDifference(inner, row, rowOf(state.d), current);
      else await showEpisode(inner, row, current);
      if (current()) place.scrollTop = 0;
    }
    if (current()) document.body.dataset.shown = String(turn);
  } catch (error) {
    if (current()) show(place, h("p.error", { role: "alert" }, visible(`cannot show this: ${error.message}`)));
  }
}

function welcome() {
  const invalid = column.valid.filter((valid) => !valid).length;
  const returns = column.reward.filter((value) => typeof value === "number");
  const mean = returns.length ? returns.reduce((sum, value) => sum + value, 0) / returns.length : null;
  return [
    h("h2", {}, "What is here"),
    h("dl.facts", {}, fact("episodes", String(rows)), fact("invalid", String(invalid)), fact("mean return of the valid", mean === null ? "" : figure(mean)),
      fact("groups", String(book.groups.length)), fact("stores", String(book.stores.length))),
    book.note && markdown(book.note),
    rows > 0 && h("p", {}, "Choose an episode in the list, or press j."), help(),
  ];
}

function help() {
  return h("details", { open: true }, h("summary", {}, "keys"), h("dl.facts", {}, KEYS.map(([key, what]) => h("div", {}, h("dt", {}, h("kbd", {}, key)), h("dd", {}, what)))));
}

function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea, dialog")) {
    if (event.key === "Escape" && event.target.closest("input, select")) event.target.blur();
    return;
  }
  const row = rowOf(state.e);
  const actions = {
    j: () => move(1), k: () => move(-1), ArrowDown: () => move(1), ArrowUp: () => move(-1),
    "/": () => document.querySelector("#filters [name=q]").focus(), t: () => go({ t: state.t ? "" : "1", v: "episode" }),
    e: () => go({ v: "episode", d: "" }), g: () => go({ v: "group", d: "" }), s: () => go({ v: "start", d: "" }),
    d: () => {
      if (row < 0) return;
      const members = membersOf(row, false).length > 1 ? membersOf(row, false) : membersOf(row, true);
      const other = members[(members.indexOf(row) + 1) % members.length];
      if (other === row) say("it has no other member to compare with");
      else go({ v: "diff", d: nameOf(other) });
    },
    r: () => book.runs.length ? go({ v: "runs" }) : say("no runs are in this page"), Escape: () => go({ v: "", e: "", d: "", t: "" }),
    "?": () => go({ v: "", e: "", d: "" }),
  };
  if (["ArrowDown", "ArrowUp"].includes(event.key) && event.target.id !== "scroller") return;
  if (actions[event.key]) { event.preventDefault(); actions[event.key](); }
}

function remembered(name, value) {
  try {
    if (value !== undefined) localStorage.setItem(name, value);
    return localStorage.getItem(name);
  } catch (refused) { return null; } // some browsers keep nothing for pages from the disk
}

function theme(name) {
  if (name) document.documentElement.dataset.theme = name;
  else delete document.documentElement.dataset.theme;
}

function switchTheme() {
  const dark = (document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const next = dark ? "light" : "dark";
  remembered("polyturn-theme", next);
  theme(next);
}

async function follow() {
  try {
    if (await changed()) {
      await openBook();
      text = { query: "", found: null, done: 0, generation: text.generation + 1 };
      searchText();
      draw();
      say("new episodes or figures");
    }
  } catch (gone) { say("the server does not answer; start polyturn view --serve again"); }
  setTimeout(follow, 2000);
}

function frame() {
  const tabs = [(rows || !book.results.length) && ["", "episodes"], book.runs.length && ["runs", "runs"], book.results.length && ["results", "results"]].filter(Boolean);
  document.body.append(
    h("a.skip", { href: "#detail", onclick: (event) => { event.preventDefault(); $("detail").focus(); } }, "to the episode"),
    h("header", { id: "top" }, h("h1", {}, visible(book.title)), h("nav", { id: "tabs", "aria-label": "Pages" }, tabs.map(([view, label]) => h("a", { "data-view": view }, label))),
      h("button.small", { type: "button", onclick: switchTheme }, "dark or light")),
    h("main", {}, h("section", { id: "list", "aria-label": "List of episodes" }, listPane()), h("section", { id: "detail", tabindex: -1, "aria-label": "Details" })),
    h("div", { id: "said", role: "status", "aria-live": "polite" }));
}

async function start() {
  theme(remembered("polyturn-theme"));
  try {
    await openBook();
  } catch (error) {
    document.body.append(h("p.error", { role: "alert" }, `The page cannot be read: ${error.message}. It needs Chrome 80, Firefox 113, Safari 16.4 or newer.`));
    return;
  }
  frame();
  if (!location.hash && !rows) history.replaceState(null, "", book.runs.length ? "#v=runs" : book.results.length ? "#v=results" : "#");
  addEventListener("hashchange", draw);
  addEventListener("popstate", draw);
  addEventListener("keydown", pressed);
  addEventListener("resize", drawRows);
  draw();
  document.body.dataset.ready = String(Math.round(performance.now()));
  if (MODE === "server") setTimeout(follow, 2000);
}

start();
