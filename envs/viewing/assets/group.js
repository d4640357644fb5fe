// Episodes from one start: side by side with what they share shown once, who beats whom, and what differs in a pair.

const SIDE_BY_SIDE = 24; // members shown at once

function membersOf(row, all) {
  const wanted = all ? column.start : column.group, found = [];
  for (let other = 0; other < rows; other++) if (wanted[other] === wanted[row]) found.push(other);
  return found;
}

function memberName(row, all) {
  const name = all ? `${policyOf(row)} ${column.number[row]}` : `member ${column.member[row]}`;
  return name.trim() || String(column.number[row]);
}

function events(episode) {
  const [env, agent] = episode.roles;
  const list = episode.turns.flatMap(([said, done, reward], turn) => [
    { kind: "env", who: env, text: said, turn }, { kind: "agent", who: agent, text: done, turn, reward },
  ]);
  if (episode.final) list.push({ kind: "env", who: env, text: episode.final, turn: episode.turns.length });
  return list;
}

function same(a, b) {
  return a.kind === b.kind && a.text === b.text && (a.reward || 0) === (b.reward || 0);
}

// A tree over episodes: `shared` is what all below have in common; then one branch for each different next event.
function tree(members) {
  const shared = [];
  const lists = members.map((member) => member.events);
  while (lists.every((list) => list.length > shared.length && same(list[shared.length], lists[0][shared.length]))) {
    shared.push(lists[0][shared.length]);
  }
  const rest = members.map((member) => ({ ...member, events: member.events.slice(shared.length) }));
  const branches = [];
  for (const member of rest) {
    const like = member.events.length && branches.find((branch) => branch[0].events.length && same(branch[0].events[0], member.events[0]));
    if (like) like.push(member);
    else branches.push([member]);
  }
  if (branches.length === 1) return { shared, members: rest, branches: [] };
  return { shared, members: rest, branches: branches.map((branch) => tree(branch)) };
}

function drawTree(node, all, depth = 0) {
  const said = node.shared.map((event) => speech(event.kind, event.who, event.text, state.q, {
    fold: event.turn > 0, reward: event.reward ? h("span.reward", {}, `reward ${figure(event.reward)}`) : null,
  }));
  if (!node.branches.length) {
    const heads = node.members.map(({ row }) => h("h3", {},
      h("a", { href: link({ v: "episode", e: nameOf(row) }) }, visible(memberName(row, all))), ` ${column.valid[row] ? `return ${figure(column.reward[row])}` : "invalid"}`));
    const errors = node.members.map(({ row }) => column.error[row] === null ? null : h("p.error", {}, visible(column.error[row])));
    return h("div.leaf", {}, heads, said, errors);
  }
  const turns = new Set(node.shared.filter((event) => event.kind === "agent").map((event) => event.turn)).size;
  const note = `${count(node.members.length, "episode")} share ${turns ? count(turns, "turn") : "what the environment said first"}`;
  return h("div.branching", {}, said.length > 0 && h("div.shared", {}, h("p.note", {}, note), said),
    h("div.branches", { role: "list" }, node.branches.map((branch) => h("div.branch", { role: "listitem" }, drawTree(branch, all, depth + 1)))));
}

function matrixTable(group, members) {
  if (!group.matrix) return null;
  const name = (at) => String(column.member[members[at]]);
  const shade = (value) => typeof value !== "number" ? "unasked" : value > 0.5 ? "win" : value < 0.5 ? "loss" : "tie";
  const cell = (value, i, j) => h(`td.${i === j ? "self" : shade(value)}`, {}, i === j ? "" : typeof value !== "number" ? "not asked"
    : h("a", { href: link({ v: "diff", e: nameOf(members[i]), d: nameOf(members[j]) }), title: `P(${name(i)} beats ${name(j)}); open the differences` }, figure(value)));
  return h("table.matrix", {},
    h("caption", {}, `P(row beats column), by ${group.source}: ${group.by}`),
    h("thead", {}, h("tr", {}, h("td", {}, "member"), members.map((_, j) => h("th", { scope: "col" }, name(j))))),
    h("tbody", {}, group.matrix.map((line, i) => h("tr", {}, h("th", { scope: "row" }, name(i)), line.map((value, j) => cell(value, i, j))))));
}

async function showGroup(place, row, current, all) {
  const members = membersOf(row, all), shown = members.slice(0, SIDE_BY_SIDE);
  const loaded = [];
  for (const member of shown) loaded.push({ row: member, events: events(await conversation(member)) });
  if (!current()) return;
  const group = book.groups[column.group[row]];
  show(place,
    h("h2", {}, all ? "Same start: " : `Group ${column.group[row]}: `, visible(taskOf(row)), `, seed ${column.seed[row]}`),
    h("p", {}, `${count(members.length, "episode")} from the identical start${shown.length < members.length ? `; the first ${SIDE_BY_SIDE} are shown` : ""}`
      + (!all && group.branched_at !== null ? `; branched after ${count(group.branched_at, "turn")}` : "")),
    shown.length === 2 && h("p", {}, h("a", { href: link({ v: "diff", e: nameOf(shown[0]), d: nameOf(shown[1]) }) }, "differences of the two")),
    !all && matrixTable(group, members),
    drawTree(tree(loaded), all));
}

async function showDifference(place, left, right, current) {
  const [a, b] = [await conversation(left), await conversation(right)];
  if (!current()) return;
  const turns = Math.max(a.turns.length, b.turns.length), parts = [];
  const compared = (kind, who, x, y, reward) => {
    if (x === undefined || y === undefined) {
      return speech(kind, `${who}, only in ${x === undefined ? "the second" : "the first"}`, x === undefined ? y : x, state.q, { fold: true, reward });
    }
    if (x === y) return speech(kind, `${who}, the same`, x, state.q, { fold: true, reward });
    const words = difference(x, y).map(([side, text]) => side === "same" ? visible(text) : h(side === "left" ? "del" : "ins", {}, visible(text)));
    return h(`article.speech.${kind}`, {}, h("header", {}, h("span.who", {}, visible(who)), reward), h("pre.said", {}, words));
  };
  for (let turn = 0; turn < turns; turn++) {
    const [x, y] = [a.turns[turn], b.turns[turn]];
    const rewards = [x, y].map((each) => each ? figure(each[2]) : "none");
    parts.push(compared("env", a.roles[0], x && x[0], y && y[0]), compared("agent", a.roles[1], x && x[1], y && y[1],
      rewards[0] === rewards[1] ? null : h("span.reward", {}, `reward ${rewards[0]} and ${rewards[1]}`)));
  }
  if (a.final || b.final) parts.push(compared("env", a.roles[0], a.final, b.final));
  const name = (row) => h("a", { href: link({ v: "episode", e: nameOf(row), d: "" }) }, visible(`${policyOf(row)} ${column.number[row]}`), ` (${column.valid[row] ? `return ${figure(column.reward[row])}` : "invalid"})`);
  show(place, h("h2", {}, "Differences"), h("p", {}, h("del", {}, "only in the first: "), name(left), "; ", h("ins", {}, "only in the second: "), name(right)),
    column.start[left] !== column.start[right] && h("p.error", {}, "The two have different starts: their difference is not the policies' alone."), parts);
}
