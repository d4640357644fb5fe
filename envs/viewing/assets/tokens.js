// The tokens of an episode as they were sampled: whose they are, how probable, what is trained on.

const BANDS = [0.9, 0.5, 0.1, 0.01]; // probabilities that part the five shades

const SHADINGS = [["logp", "log-prob"], ["ratio", "log-ratio"], ["weight", "weight in the loss"]];
const SHADE_KEYS = {
  logp: [["outside", "outside"], ["p0", "p \u2265 0.9"], ["p1", "\u2265 0.5"], ["p2", "\u2265 0.1"], ["p3", "\u2265 0.01"], ["p4", "below"]],
  ratio: [["outside", "outside"], ["up2", "much likelier than under the reference"], ["up1", "likelier"], ["even", "as likely"], ["down1", "less likely"], ["down2", "much less likely"], ["unknown", "not compared"]],
  weight: [["even", "nothing learned"], ["up2", "pushed up most"], ["up1", "pushed up"], ["down1", "pushed down"], ["down2", "pushed down most"]],
};

function band(logp) {
  const probability = Math.exp(logp);
  const at = BANDS.findIndex((least) => probability >= least);
  return at < 0 ? BANDS.length : at;
}

// What shades the tokens: "logp", "ratio" or "weight"; kept from episode to episode.
let shading = "logp";

// The sign of a number and whether it is large among those of its episode. A negative weight pushes a token up.
function leaning(value, largest, upwards) {
  if (!value || Number.isNaN(value)) return value === 0 ? "even" : "unknown";
  return `${value * upwards > 0 ? "up" : "down"}${Math.abs(value) >= largest / 2 ? 2 : 1}`;
}

function shadeOf(token, largest) {
  if (shading === "weight") return leaning(token.weight, largest.weight, -1);
  if (!token.own) return "outside";
  if (shading === "ratio") return leaning(token.ratio, largest.ratio, 1);
  return token.logp === null ? "unknown" : `p${band(token.logp)}`;
}

function trainedText(token) {
  if (token.weight === null) return "";
  const ratio = !token.own ? "" : Number.isNaN(token.ratio) ? "; no log-ratio" : `; log-ratio ${token.ratio.toFixed(4)} nats`;
  const way = token.weight === 0 ? "nothing is learned from it" : token.weight < 0 ? "pushed up" : "pushed down";
  return `${ratio}; weight in the loss ${figure(token.weight)}: ${way}`;
}

function tokenText(id, words) {
  const found = words && words.get(id);
  if (!found) return { nodes: [`#${id} `], special: false };
  // Line ends are shown and kept, so that text keeps its shape.
  const nodes = found.text.split("\n").flatMap((line, at) => at ? ["\u21b5\n", ...visible(line)] : visible(line));
  return { nodes: found.text ? nodes : [`#${id}`], special: found.special };
}

function tokenView(turns, words, cut) {
  const status = h("p.token-status", { role: "status" }, words ? "point at a token, or use the arrow keys" : "ids only: name a tokenizer with --tokenizer to see text");
  const all = [];
  const add = (id, logp, own, turn, ratio, weight) => {
    const { nodes, special } = tokenText(id, words);
    const span = h("span.token", {}, nodes);
    all.push({ span, id, logp, own, turn, special, ratio, weight });
    return span;
  };
  const blocks = turns.map(({ context, action, logps, ratios, weights }, turn) => h("div.token-turn", {},
    Array.from(context, (id, at) => add(id, null, false, turn, null, weights && weights[at])),
    Array.from(action, (id, at) => add(id, logps.length ? logps[at] : null, true, turn, ratios && ratios[at], weights && weights[context.length + at]))));
  if (cut && blocks.length) blocks[blocks.length - 1].append(h("span.cut", {}, ` cut here, after token ${all.length} `));
  const places = new Map(all.map((token, at) => [token.span, at]));
  let current = -1;
  const point = (at) => {
    if (at < 0 || at >= all.length || at === current) return;
    if (current >= 0) all[current].span.classList.remove("pointed");
    current = at;
    const token = all[at];
    token.span.classList.add("pointed");
    const logp = token.own
      ? token.logp === null ? "log-prob not recorded" : `log-prob ${token.logp.toFixed(4)} nats, probability ${figure(Math.exp(token.logp))}`
      : token.weight ? "written outside the agent" : "written outside the agent: never in a loss";
    status.textContent = `token ${at + 1} of ${all.length}, turn ${token.turn + 1}, id ${token.id}${token.special ? ", special" : ""}: ${logp}${token.own || token.weight ? trainedText(token) : ""}`;
  };
  const under = (event) => places.get(event.target.closest && event.target.closest(".token"));
  const field = h("div.tokens", {
    tabindex: 0, role: "group", "aria-label": "Tokens; arrow keys move from token to token",
    onmouseover: (event) => { const at = under(event); if (at !== undefined) point(at); },
    onclick: (event) => { const at = under(event); if (at !== undefined) point(at); },
    onkeydown: (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      event.stopPropagation();
      point(current < 0 ? 0 : current + step);
      all[current].span.scrollIntoView({ block: "nearest" });
    },
  }, blocks);
  const own = all.filter((token) => token.own), known = own.filter((token) => token.logp !== null);
  const trained = all.filter((token) => token.weight !== null);
  const sum = known.reduce((total, token) => total + token.logp, 0);
  const facts = `${count(all.length, "token")}, ${own.length.toLocaleString("en")} written by the agent`
    + (known.length ? `, their log-prob ${figure(sum)} nats in all, ${figure(sum / known.length)} a token` : "")
    + (trained.length ? "." : ". Log-ratio and weight in the loss are not in this store; polyturn weigh adds them.");
  const most = (values) => values.reduce((largest, value) => Math.max(largest, Math.abs(value) || 0), 0);
  const largest = { ratio: most(trained.map((token) => token.ratio)), weight: most(trained.map((token) => token.weight)) };
  const key = h("p.key"), choice = h("div.tools");
  const paint = () => {
    if (!trained.length) shading = "logp";
    for (const token of all) token.span.setAttribute("class", ["token", shadeOf(token, largest), token.special && "special", token.span.classList.contains("pointed") && "pointed"].filter(Boolean).join(" "));
    show(key, SHADE_KEYS[shading].map(([shade, name]) => [h(`span.token.${shade}`, {}, name), " "]));
    if (trained.length) show(choice, "shade by ", SHADINGS.map(([kind, name]) => h("button.small", { type: "button", "aria-pressed": String(shading === kind), onclick: () => { shading = kind; paint(); } }, name)));
  };
  paint();
  return h("section", { "aria-label": "Tokens" }, h("p", {}, facts), choice, key, status, field);
}
