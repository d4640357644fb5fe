// The index, and the chunks that are read when they are opened: from this page, from side files, or from a server.

const MODE = document.body.dataset.mode, SIDE = document.body.dataset.side;
const KEPT = 12; // chunks held in memory
const cache = new Map();
const arriving = new Map(); // side files by number: the function that takes their data
let book = null, rows = 0, column = {}, version = "";

function bytes(base64) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64);
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}

async function unpacked(data) {
  const stream = new Blob([data]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

async function openBook() {
  if (MODE === "server") {
    const answer = await fetch("index");
    version = answer.headers.get("x-version") || "";
    take(await unpacked(await answer.arrayBuffer()));
  } else take(await unpacked(bytes($("index").textContent)));
}

function take(index) {
  book = index;
  column = index.columns;
  rows = column.store.length;
  cache.clear();
}

// A server's page: whether the run has written something since.
async function changed() {
  const answer = await fetch("version");
  const now = await answer.text();
  return now !== version;
}

function chunk(number) {
  if (cache.has(number)) {
    const found = cache.get(number);
    cache.delete(number); // the most recently used stands last
    cache.set(number, found);
    return found;
  }
  const found = read(number).then(unpacked);
  found.catch(() => cache.delete(number));
  cache.set(number, found);
  while (cache.size > KEPT) cache.delete(cache.keys().next().value);
  return found;
}

async function read(number) {
  if (MODE === "server") {
    const answer = await fetch(`chunk/${number}`);
    if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
    return answer.arrayBuffer();
  }
  if (MODE === "folder") return beside(number);
  let place = $(`chunk-${number}`);
  while (!place && document.readyState === "loading") { // the browser is still reading the file
    await new Promise((resolve) => setTimeout(resolve, 50));
    place = $(`chunk-${number}`);
  }
  if (!place) throw new Error("the page is not whole: it was cut while it was written or copied");
  return bytes(place.textContent);
}

// A page from the disk may not fetch, but it may add a script whose one call hands over the data.
function beside(number) {
  return new Promise((resolve, reject) => {
    arriving.set(number, resolve);
    const script = document.createElement("script");
    script.src = `${encodeURIComponent(SIDE)}/${number}.js`;
    script.onload = () => { script.remove(); arriving.delete(number); };
    script.onerror = () => { script.remove(); reject(new Error(`${SIDE}/${number}.js cannot be read; keep the folder beside the page`)); };
    document.head.append(script);
  });
}

window.polyturnChunk = (number, base64) => {
  const taken = arriving.get(number);
  if (taken) taken(bytes(base64));
};

async function conversation(row) {
  return (await chunk(column.chunk[row]))[column.slot[row]];
}

// Per turn {context, action, logps, ratios, weights}, or null where the episode has no tokens. Ratios (of the action) and
// weights (of context and action) are null where the store does not say what is trained on.
async function tokensOf(row) {
  const place = book.tokens[column.chunk[row]];
  if (place === undefined) return null;
  const turns = (await chunk(place))[column.slot[row]];
  return turns.map(([context, action, logps, ratios, weights]) => ({
    context: new Int32Array(bytes(context).buffer), action: new Int32Array(bytes(action).buffer),
    logps: new Float32Array(bytes(logps).buffer),
    ratios: ratios === undefined ? null : new Float32Array(bytes(ratios).buffer),
    weights: weights === undefined ? null : new Float32Array(bytes(weights).buffer),
  }));
}

// From a token's id to its text and whether it is special; null where no tokenizer was given.
async function vocabulary() {
  if (book.vocabulary === null) return null;
  const { ids, texts, special } = await chunk(book.vocabulary);
  return new Map(ids.map((id, at) => [id, { text: texts[at], special: special[at] }]));
}

function searched(episode) {
  return [...episode.turns.flatMap(([said, done]) => [said, done]), episode.final, episode.error || ""].join("\n");
}

// Looks through all text, a chunk after another; `tell(rows, done)` after each; stops when `stopped()` says so.
async function search(query, tell, stopped) {
  const wanted = query.toLowerCase(), found = new Set(), members = new Map();
  for (let row = 0; row < rows; row++) {
    if (!members.has(column.chunk[row])) members.set(column.chunk[row], []);
    members.get(column.chunk[row]).push(row);
  }
  let done = 0;
  for (const [number, inside] of members) {
    const texts = await read(number).then(unpacked);
    if (stopped()) return;
    for (const row of inside) {
      if (searched(texts[column.slot[row]]).toLowerCase().includes(wanted)) found.add(row);
    }
    done += inside.length;
    tell(found, done);
  }
}

// An episode's permanent name: its store and its place in it, which a later page of the same store keeps.
function nameOf(row) {
  return `${column.store[row]}:${column.number[row]}`;
}

function rowOf(name) {
  const [store, number] = String(name).split(":").map(Number);
  for (let row = 0; row < rows; row++) if (column.store[row] === store && column.number[row] === number) return row;
  return -1;
}
