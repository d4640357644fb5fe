// Training runs and results of suites: curves that lead to their episodes, settings, tables, pictures.

const WIDE = 300, HIGH = 150, LEFT = 48, BOTTOM = 22, TOP = 8;

function bounds(values) {
  let low = Math.min(...values), high = Math.max(...values);
  if (low === high) { low -= Math.abs(low) / 10 || 1; high += Math.abs(high) / 10 || 1; }
  return [low, high];
}

function curve(data, open) {
  const points = data.points.filter(([, value]) => typeof value === "number");
  const [left, right] = bounds(points.map(([step]) => step)), [low, high] = bounds(points.map(([, value]) => value));
  const x = (step) => LEFT + (WIDE - LEFT - 8) * (step - left) / (right - left);
  const y = (value) => TOP + (HIGH - TOP - BOTTOM) * (high - value) / (high - low);
  const last = points[points.length - 1];
  const picture = svg("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", "aria-label": `${data.name}: ${count(points.length, "point")}, the last ${figure(last[1])}` },
    svg("path.axis", { d: `M${LEFT} ${TOP}V${HIGH - BOTTOM}H${WIDE - 8}` }),
    svg("text", { x: LEFT - 4, y: TOP + 8, "text-anchor": "end" }, figure(high, 3)), svg("text", { x: LEFT - 4, y: HIGH - BOTTOM, "text-anchor": "end" }, figure(low, 3)),
    svg("text", { x: LEFT, y: HIGH - 6 }, figure(left)), svg("text", { x: WIDE - 8, y: HIGH - 6, "text-anchor": "end" }, figure(right)),
    svg("path.line", { d: points.map(([step, value], at) => `${at ? "L" : "M"}${x(step).toFixed(1)} ${y(value).toFixed(1)}`).join("") }),
    points.length <= 60 && points.map(([step, value]) => svg("circle", { cx: x(step).toFixed(1), cy: y(value).toFixed(1), r: 3 })));
  const readout = h("figcaption", {}, h("strong", {}, visible(data.name)), h("span", {}, ` ${figure(last[1])} at ${figure(last[0])}`));
  const nearest = (event) => {
    const box = picture.getBoundingClientRect(), at = (event.clientX - box.left) / box.width * WIDE;
    return points.reduce((best, point) => Math.abs(x(point[0]) - at) < Math.abs(x(best[0]) - at) ? point : best);
  };
  picture.addEventListener("mousemove", (event) => { const [step, value] = nearest(event); readout.lastChild.textContent = ` ${figure(value)} at ${figure(step)}`; });
  if (open) picture.addEventListener("click", (event) => open(nearest(event)[0]));
  const buttons = open && points.length <= 12
    ? h("div.points", {}, points.map(([step]) => h("button.small", { type: "button", title: `episodes of ${step}`, onclick: () => open(step) }, figure(step))))
    : null;
  return h(`figure.curve${open ? ".leads" : ""}`, {}, readout, picture, buttons);
}

// From a point to the episodes that belong to it.
function opener(data) {
  if (data.of) return (step) => {
    const stores = data.of[String(step)] || [];
    if (stores.length) go({ v: "", ...Object.fromEntries(FILTERS.map((name) => [name, ""])), store: stores.join(",") });
    else say(`no episodes are stored for iteration ${step}`);
  };
  return data.stores.length ? () => go({ v: "", ...Object.fromEntries(FILTERS.map((name) => [name, ""])), store: data.stores.join(",") }) : null;
}

function showRuns(place) {
  show(place, book.runs.map((run) => {
    const places = [...new Set(run.curves.map((each) => each.place))];
    return h("section", {}, h("h2", {}, "Run ", visible(run.path)),
      Object.keys(run.settings).length > 0 && h("details", {}, h("summary", {}, "settings"), h("pre.code", {}, visible(JSON.stringify(run.settings, null, 1)))),
      places.map((name) => h("details", { open: name === places[0] || places.length < 3 }, h("summary", {}, visible(name === "." ? "training" : name)),
        h("div.curves", {}, run.curves.filter((each) => each.place === name).map((each) => curve(each, opener(each)))))));
  }));
}

function resultTable(result) {
  const names = [...new Set(result.cells.flatMap((cell) => Object.keys(cell.values)))].slice(0, 12);
  return h("div.wide", { tabindex: 0, role: "region", "aria-label": "cells" }, h("table", {},
    h("thead", {}, h("tr", {}, ["cell", "seed", ...names].map((name) => h("th", { scope: "col" }, visible(name))))),
    h("tbody", {}, result.cells.map((cell) => h("tr", {}, h("th", { scope: "row" }, visible(String(cell.name))), h("td", {}, String(cell.seed)),
      names.map((name) => h("td", {}, figure(cell.values[name]))))))));
}

// Headings, lists, tables and paragraphs of Markdown; everything else, links and pictures too, stays text.
function markdown(text) {
  const parts = [], lines = text.split("\n");
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
  const own = /^[\w.-]+#(v=start&e=\d+:\d+)$/; // a report's link to an episode of this page
  const inline = (words) => own.test(words) ? h("a", { href: `#${words.match(own)[1]}` }, "episodes") : words.split(/(`[^`]+`|\*\*[^*]+\*\*)/).map((part) => part.startsWith("`") && part.length > 2 ? h("code", {}, visible(part.slice(1, -1)))
    : part.startsWith("**") && part.length > 4 ? h("strong", {}, visible(part.slice(2, -2))) : visible(part));
  for (let at = 0; at < lines.length;) {
    const line = lines[at];
    const until = (stop) => { const from = at++; while (at < lines.length && !stop(lines[at])) at++; return lines.slice(from, at); };
    if (!line.trim() || /^!\[/.test(line)) at++; // pictures stand above
    else if (/^#+ /.test(line)) { parts.push(h("h3", {}, inline(line.replace(/^#+ /, "")))); at++; }
    else if (line.startsWith("```")) { at++; parts.push(h("pre.code", {}, visible(until((next) => next.startsWith("```")).join("\n")))); at++; }
    else if (line.startsWith("|")) {
      const [head, , ...body] = until((next) => !next.startsWith("|")).map(cells);
      parts.push(h("div.wide", { tabindex: 0, role: "region", "aria-label": "table" }, h("table", {}, h("thead", {}, h("tr", {}, head.map((cell) => h("th", { scope: "col" }, inline(cell))))),
        h("tbody", {}, body.map((row) => h("tr", {}, row.map((cell) => h("td", {}, inline(cell)))))))));
    } else if (/^[-*] /.test(line)) {
      const items = until((next) => !next.trim() || /^[#|]/.test(next)).join("\n").split(/\n[-*] /).map((item) => item.replace(/^[-*] /, ""));
      parts.push(h("ul", {}, items.map((item) => h("li", {}, inline(item.replace(/\s+/g, " "))))));
    } else parts.push(h("p", {}, inline(until((next) => !next.trim() || /^([#|]|[-*] |```)/.test(next)).join(" "))));
  }
  return h("div.report-text", {}, parts);
}

function showResults(place) {
  show(place, book.results.map((result) => h("section", {}, h("h2", {}, "Results of ", visible(String(result.suite))),
    h("p", {}, visible(String(result.summary || ""))),
    h("dl.facts", {}, fact("command", String(result.command || "not recorded")), fact("seeds", String(result.seeds ?? "")), fact("quick form", result.quick ? "yes: its figures support no claim" : "no")),
    result.machine && h("details", {}, h("summary", {}, "machine and versions"), h("pre.code", {}, visible(JSON.stringify(result.machine, null, 1)))),
    result.pictures.map((picture) => h("figure", {}, h("img", { src: `data:image/svg+xml;base64,${picture.data}`, alt: `${result.suite}: ${picture.name}` }), h("figcaption", {}, visible(picture.name)))),
    result.cells.length > 0 && h("details", {}, h("summary", {}, `figures of ${count(result.cells.length, "cell")}`), resultTable(result)),
    result.report && h("details", { open: true }, h("summary", {}, "report"), markdown(result.report)),
    result.reading && h("details", {}, h("summary", {}, "how to read it"), markdown(result.reading)))));
}
