// The tokens of an episode as they were sampled: whose they are, how probable, what is trained on.

const BANDS = [0.9, 0.5, 0.1, 0.01]; // probabilities that part the five shades

function band(logp) {
  const probability = Math.exp(logp);
  const at = BANDS.findIndex((least) => probability >= least);
  return at < 0 ? BANDS.length : at;
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
  const add = (id, logp, own, turn) => {
    const { nodes, special } = tokenText(id, words);
    const shade = own ? (logp === null ? "unknown" : `p${band(logp)}`) : "outside";
    const span = h(["span", "token", shade, special && "special"].filter(Boolean).join("."), {}, nodes);
    all.push({ span, id, logp, own, turn, special });
    return span;
  };
  const blocks = turns.map(({ context, action, logps }, turn) => h("div.token-turn", {},
    Array.from(context, (id) => add(id, null, false, turn)),
    Array.from(action, (id, at) => add(id, logps.length ? logps[at] : null, true, turn))));
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
      : "written outside the agent: never in a loss";
    status.textContent = `token ${at + 1} of ${all.length}, turn ${token.turn + 1}, id ${token.id}${token.special ? ", special" : ""}: ${logp}`;
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
  const sum = known.reduce((total, token) => total + token.logp, 0);
  const facts = `${count(all.length, "token")}, ${own.length.toLocaleString("en")} written by the agent`
    + (known.length ? `, their log-prob ${figure(sum)} nats in all, ${figure(sum / known.length)} a token` : "")
    + ". Log-ratio, advantage and weight in the loss are not recorded in a store.";
  const key = h("p.key", {}, h("span.token.outside", {}, "outside"), " ", ["p \u2265 0.9", "\u2265 0.5", "\u2265 0.1", "\u2265 0.01", "below"].map((name, at) => [h(`span.token.p${at}`, {}, name), " "]));
  return h("section", { "aria-label": "Tokens" }, h("p", {}, facts), key, status, field);
}
