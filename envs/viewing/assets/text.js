// Text of models and tools: what cannot be seen is made visible, code is coloured, and two texts are compared.

const ODD = /[\p{Cc}\p{Cf}\p{Co}\p{Cn}\p{Cs}\p{Zl}\p{Zp}\p{Zs}]/u;
const NAMES = {
  0x00a0: "no-break space", 0x00ad: "soft hyphen", 0x061c: "Arabic letter mark", 0x180e: "Mongolian vowel separator",
  0x200b: "zero width space", 0x200c: "zero width non-joiner", 0x200d: "zero width joiner",
  0x200e: "left-to-right mark", 0x200f: "right-to-left mark", 0x2028: "line separator", 0x2029: "paragraph separator",
  0x202a: "left-to-right embedding", 0x202b: "right-to-left embedding", 0x202c: "pop directional formatting",
  0x202d: "left-to-right override", 0x202e: "right-to-left override", 0x2060: "word joiner",
  0x2066: "left-to-right isolate", 0x2067: "right-to-left isolate", 0x2068: "first strong isolate",
  0x2069: "pop directional isolate", 0xfeff: "byte order mark", 0x001b: "escape", 0x0000: "null", 0x0008: "backspace",
  0x000d: "carriage return", 0x007f: "delete",
};
// Cyrillic, Greek and Armenian letters that look like Latin ones in common typefaces.
const ALIKE = /[АВЕЅІЈКМНОРСТУХҮԌԚԜавеѕіјкмнорстухԁԛԝһӏґΑΒΕΖΗΙΚΜΝΟΡΤΥΧαικνορτυχϲϳօսոհց]/u;
const STYLED = /[\uff01-\uff5e\u{1d400}-\u{1d7ff}]/u;
const LATIN = /\p{Script=Latin}/u;
const FOREIGN = /[\p{Script=Cyrillic}\p{Script=Greek}\p{Script=Armenian}]/u;
const STACKED = /\p{M}{4,}/gu;
const LONG = 20000;

function codePoint(character) {
  return "U+" + character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
}

function oddName(character) {
  const code = character.codePointAt(0);
  if (NAMES[code]) return NAMES[code];
  if (/\p{Cc}/u.test(character)) return "control character";
  if (/\p{Cf}/u.test(character)) return "formatting character";
  if (/\p{Cs}/u.test(character)) return "half of a character (lone surrogate)";
  if (/\p{Zs}/u.test(character)) return "unusual space";
  return "unassigned or private character";
}

function oddMark(character) {
  const name = `${codePoint(character)} ${oddName(character)}`;
  return h("span.odd", { title: name }, `\u2039${codePoint(character)}\u203a`);
}

function lookalike(character, why) {
  return h("span.alike", { title: `${codePoint(character)}: ${why}` }, character);
}

// The nodes of a text in which nothing is hidden. `query` is marked, whatever its case.
function visible(text, query) {
  const parts = [];
  let run = "";
  const close = () => { if (run) parts.push(...marked(run, query)); run = ""; };
  if (!/[^\n\t\x20-\x7e]/.test(text)) {
    run = text;
    close();
    return parts;
  }
  // Where every Cyrillic or Greek letter has a Latin double, and Latin is written too, the text is no Russian or Greek.
  const letters = text.match(/[\p{Script=Cyrillic}\p{Script=Greek}\p{Script=Armenian}]/gu) || [];
  const disguised = letters.length > 0 && LATIN.test(text) && letters.every((letter) => ALIKE.test(letter));
  for (const word of text.match(/[\p{L}\p{M}\p{N}_]+|[^\p{L}\p{M}\p{N}_]+/gu) || [text]) {
    if (!/[^\n\t\x20-\x7e]/.test(word)) { run += word; continue; }
    const mixed = LATIN.test(word) && FOREIGN.test(word);
    for (const character of word) {
      if (character === "\n" || character === "\t" || character === " ") run += character;
      else if (ODD.test(character)) { close(); parts.push(oddMark(character)); }
      else if ((mixed && FOREIGN.test(character)) || (disguised && ALIKE.test(character))) {
        close();
        parts.push(lookalike(character, "looks like a Latin letter, and is none"));
      } else if (STYLED.test(character)) { close(); parts.push(lookalike(character, "a styled double of an ASCII character")); }
      else run += character;
    }
  }
  close();
  return parts;
}

function marked(text, query) {
  // A pile of combining marks covers the lines around it; the first three are kept.
  text = text.replace(STACKED, (pile) => [...pile].slice(0, 3).join("") + `\u2039+${[...pile].length - 3} marks\u203a`);
  if (!query) return [text];
  const parts = [], lower = text.toLowerCase(), wanted = query.toLowerCase();
  if (lower.length !== text.length) return [text]; // case folding changed lengths; positions would be wrong
  let at = 0;
  for (let found = lower.indexOf(wanted); found >= 0; found = lower.indexOf(wanted, at)) {
    if (found > at) parts.push(text.slice(at, found));
    parts.push(h("mark", {}, text.slice(found, found + wanted.length)));
    at = found + wanted.length;
  }
  if (at < text.length) parts.push(text.slice(at));
  return parts;
}

const CODE = new RegExp([
  String.raw`(#[^\n]*|\/\/[^\n]*)`,
  String.raw`("(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')`,
  String.raw`\b(and|as|assert|async|await|break|class|const|continue|def|del|elif|else|except|False|finally|for|from|function|global|if|import|in|is|lambda|let|None|nonlocal|not|or|pass|raise|return|True|try|var|while|with|yield|true|false|null)\b`,
  String.raw`\b(\d[\w.]*)\b`,
].join("|"), "g");

function highlighted(code, query) {
  if (code.length > LONG) return visible(code, query);
  const parts = [];
  let at = 0;
  for (const match of code.matchAll(CODE)) {
    if (match.index > at) parts.push(...visible(code.slice(at, match.index), query));
    const kind = match[1] ? "comment" : match[2] ? "string" : match[3] ? "keyword" : "number";
    parts.push(h(`span.${kind}`, {}, visible(match[0], query)));
    at = match.index + match[0].length;
  }
  parts.push(...visible(code.slice(at), query));
  return parts;
}

// Prose and fenced code; very long text is cut until it is asked for.
function prose(text, query) {
  if (text.length > LONG) {
    const place = h("div", {}, prose(text.slice(0, LONG), query));
    const more = h("button.small", { type: "button", onclick: () => show(place, prosePieces(text, query)) },
      `show all ${text.length.toLocaleString("en")} characters`);
    place.append(more);
    return place;
  }
  return h("div", {}, prosePieces(text, query));
}

function prosePieces(text, query) {
  const parts = [];
  let at = 0;
  for (const match of text.matchAll(/```([\w+-]*)[^\n]*\n([\s\S]*?)(?:\n```|$)/g)) {
    if (match.index > at) parts.push(h("pre.said", {}, visible(text.slice(at, match.index), query)));
    parts.push(h("pre.code", { "data-language": match[1] || "text" }, highlighted(match[2], query)));
    at = match.index + match[0].length;
    if (text[at] === "\n") at++; // the line end behind the fence belongs to it
  }
  if (at < text.length || !parts.length) parts.push(h("pre.said", {}, visible(text.slice(at), query)));
  return parts;
}

// Differences of two texts by words: [["same" | "left" | "right", text], ...]; Myers' O(ND) search.
function difference(left, right, most = 1500) {
  const a = left.match(/\s+|[^\s]+/g) || [], b = right.match(/\s+|[^\s]+/g) || [];
  let head = 0;
  while (head < a.length && head < b.length && a[head] === b[head]) head++;
  let tail = 0;
  while (tail < a.length - head && tail < b.length - head && a[a.length - 1 - tail] === b[b.length - 1 - tail]) tail++;
  const x = a.slice(head, a.length - tail), y = b.slice(head, b.length - tail);
  const middle = shortest(x, y, most) || [["left", x.join("")], ["right", y.join("")]];
  return [["same", a.slice(0, head).join("")], ...middle, ["same", a.slice(a.length - tail).join("")]]
    .filter(([, text]) => text);
}

function shortest(a, b, most) {
  const reach = new Map([[1, 0]]), trail = [];
  for (let cost = 0; cost <= a.length + b.length; cost++) {
    if (cost > most) return null;
    trail.push(new Map(reach));
    for (let k = -cost; k <= cost; k += 2) {
      const down = k === -cost || (k !== cost && (reach.get(k - 1) ?? -1) < (reach.get(k + 1) ?? -1));
      let x = down ? reach.get(k + 1) : reach.get(k - 1) + 1, y = x - k;
      while (x < a.length && y < b.length && a[x] === b[y]) { x++; y++; }
      reach.set(k, x);
      if (x >= a.length && y >= b.length) return traced(a, b, trail);
    }
  }
  return null;
}

function traced(a, b, trail) {
  const steps = [];
  let x = a.length, y = b.length;
  for (let cost = trail.length - 1; cost >= 0; cost--) {
    const reach = trail[cost], k = x - y;
    const down = k === -cost || (k !== cost && (reach.get(k - 1) ?? -1) < (reach.get(k + 1) ?? -1));
    const from = down ? k + 1 : k - 1, fromX = reach.get(from), fromY = fromX - from;
    while (x > fromX && y > fromY && x > 0 && y > 0) { steps.push(["same", a[--x]]); y--; }
    if (cost > 0) { if (down) steps.push(["right", b[--y]]); else steps.push(["left", a[--x]]); }
  }
  const joined = [];
  for (const [kind, text] of steps.reverse()) {
    const last = joined[joined.length - 1];
    if (last && last[0] === kind) last[1] += text;
    else joined.push([kind, text]);
  }
  return joined;
}
