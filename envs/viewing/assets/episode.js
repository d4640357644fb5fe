// An episode as a conversation, and copies of it for other uses.

const FOLDED = 12; // lines of an environment's text beyond which it is folded

function fact(name, value) {
  return value === "" || value === null || value === undefined ? null : h("div", {}, h("dt", {}, name), h("dd", {}, typeof value === "string" ? visible(value) : value));
}

function factsOf(row, episode) {
  const prefix = episode.info.shared_prefix;
  return h("dl.facts", {},
    fact("return", column.valid[row] ? figure(column.reward[row]) : "none: the episode is invalid"),
    fact("success", typeof episode.info.success === "boolean" ? (episode.info.success ? "yes" : "no") : ""),
    fact("end", column.end[row]), fact("turns", String(column.turns[row])), fact("tokens", column.tokens[row] ? String(column.tokens[row]) : ""),
    fact("environment", column.env[row]), fact("task", column.task[row]), fact("seed", String(column.seed[row])),
    fact("member", String(column.member[row])), fact("agent", column.agent[row]), fact("policy version", column.version[row]),
    fact("shared prefix", prefix && prefix.turns !== undefined ? count(prefix.turns, "turn") : ""),
    fact("store", `${book.stores[column.store[row]]}, number ${column.number[row]}`));
}

// One speech: who, what, and for long text of an environment a fold that shows its first line.
function speech(kind, who, text, query, { fold = false, note = null, reward = null } = {}) {
  const lines = text.split("\n").length;
  const body = fold && (lines > FOLDED || text.length > 1500)
    ? h("details", { open: Boolean(query && text.toLowerCase().includes(query.toLowerCase())) },
        h("summary", {}, visible(text.slice(0, 160).split("\n")[0]), ` (${count(lines, "line")})`), prose(text, query))
    : prose(text, query);
  return h(`article.speech.${kind}`, {}, h("header", {}, h("span.who", {}, visible(who)), note, reward), body);
}

function rewardMark(reward, total) {
  return h("span.reward", { title: "reward of this turn, and the sum until here" }, `reward ${figure(reward)} (in all ${figure(total)})`);
}

function speeches(episode, query, from = 0) {
  const [env, agent] = episode.roles, parts = [];
  let total = 0;
  episode.turns.forEach(([said, done, reward, info], turn) => {
    total += typeof reward === "number" ? reward : { inf: Infinity, "-inf": -Infinity }[reward] ?? NaN;
    if (turn < from) return;
    const failed = info && info.tool_error;
    parts.push(speech("env", env, said, query, { fold: turn > 0 }));
    parts.push(speech("agent", agent, done, query, {
      note: failed ? h("span.bad", {}, `tool error${typeof failed === "string" ? `: ${failed.slice(0, 80)}` : ""}`) : h("span.turn", {}, `turn ${turn + 1}`),
      reward: reward || turn === episode.turns.length - 1 ? rewardMark(reward, total) : null,
    }));
  });
  if (episode.final) parts.push(speech("env", env, episode.final, query, { fold: true }));
  return parts;
}

function ending(row, episode) {
  if (episode.error !== null) return h("div.error", { role: "note" }, h("strong", {}, "invalid: "), visible(episode.error));
  return h("p.end", {}, `${column.end[row]}${column.end[row] === "not ended" ? ": a limit or a crash stopped the recording, so the episode is invalid" : ""}`);
}

async function showEpisode(place, row, current) {
  const episode = await conversation(row);
  if (!current()) return;
  const tokens = h("div");
  const extras = h("details", {}, h("summary", {}, "provenance: options of the environment and info"),
    h("pre.code", {}, visible(JSON.stringify({ env_options: episode.options, info: episode.info }, null, 1))));
  show(place,
    h("h2", {}, `Episode ${column.number[row]}: `, visible(taskOf(row))),
    h("div.tools", {},
      h("button", { type: "button", "aria-pressed": String(Boolean(state.t)), onclick: () => go({ t: state.t ? "" : "1" }) }, "tokens"),
      h("button", { type: "button", onclick: () => copy(asMessages(episode), "messages") }, "copy as messages"),
      h("button", { type: "button", onclick: () => copy(asTest(row, episode), "test") }, "copy as test"),
      h("button", { type: "button", onclick: () => copy(location.href, "link") }, "copy link")),
    factsOf(row, episode), extras, tokens,
    h("section.conversation", { "aria-label": "Conversation" }, speeches(episode, state.q), ending(row, episode)));
  if (state.t) {
    const [turns, words] = await Promise.all([tokensOf(row), vocabulary()]);
    if (current()) show(tokens, turns ? tokenView(turns, words, column.end[row] === "truncated") : h("p", {}, "no tokens were recorded: the agent does not work on tokens"));
  }
}

function asMessages(episode) {
  const messages = episode.turns.flatMap(([said, done]) => [{ role: "user", content: said }, { role: "assistant", content: done }]);
  return JSON.stringify(messages, null, 1);
}

// A Python literal of ASCII only: nothing in it can end the string or reorder the source around it.
function literal(text) {
  return '"' + [...text].map((character) => {
    const code = character.codePointAt(0);
    if (character === '"' || character === "\\") return "\\" + character;
    if (code >= 0x20 && code < 0x7f) return character;
    if (character === "\n") return "\\n";
    return code < 0x10000 ? "\\u" + code.toString(16).padStart(4, "0") : "\\U" + code.toString(16).padStart(8, "0");
  }).join("") + '"';
}

function number(value) {
  return typeof value === "number" ? String(value) : `float(${literal(String(value))})`;
}

// A pytest function that plays the same actions again and expects the same words and rewards.
function asTest(row, episode) {
  const steps = episode.turns.map(([said, done, reward]) => `        (${literal(said)}, ${literal(done)}, ${number(reward)}),`);
  const task = episode.info.task_index;
  const reset = `seed=${BigInt(column.seed[row])}` + (typeof task === "number" ? `, options={"task": ${task}}` : "");
  return [
    "import json", "", "import pytest", "", "from polyturn.envs import make", "", "",
    "def test_the_recorded_episode_plays_again() -> None:",
    `    options = json.loads(${literal(JSON.stringify(episode.options))})`,
    `    env = make(${literal(column.env[row])}, **options)`,
    `    observation, _ = env.reset(${reset})`,
    "    steps = [  # what the environment says, what the agent answers, the reward", ...steps, "    ]",
    "    terminated = truncated = False",
    "    for said, action, expected in steps:",
    "        assert observation == said",
    "        observation, reward, terminated, truncated, _ = env.step(action)",
    "        assert reward == pytest.approx(expected)",
    `    assert observation == ${literal(episode.final)}`,
    `    assert (terminated, truncated) == (${column.end[row] === "terminated" ? "True" : "False"}, ${column.end[row] === "truncated" ? "True" : "False"})`,
    "    env.close()", "",
  ].join("\n");
}
