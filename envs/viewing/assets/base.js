// Making elements. Text reaches the page as text nodes and attribute values only; nothing here parses markup.

const SVG = "http://www.w3.org/2000/svg";

// h("button.small", {onclick: f, "aria-label": "x"}, "text", child, [children]) makes an element.
function h(tag, attributes, ...children) {
  const [name, ...classes] = tag.split(".");
  const element = document.createElement(name);
  return filled(element, classes, attributes, children);
}

function svg(tag, attributes, ...children) {
  const [name, ...classes] = tag.split(".");
  return filled(document.createElementNS(SVG, name), classes, attributes, children);
}

function filled(element, classes, attributes, children) {
  if (classes.length) element.setAttribute("class", classes.join(" "));
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : String(value));
  }
  element.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

function $(id) {
  return document.getElementById(id);
}

function show(parent, ...children) {
  parent.replaceChildren(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
}

// A number as people read it; what is no number (nan and infinities are text here) as it is.
function figure(value, digits = 4) {
  if (value === null || value === undefined) return "";
  if (typeof value !== "number") return String(value);
  return Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(digits)));
}

function count(number, noun) {
  return `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
}

// Says something to everyone, readers of the screen included, for a moment.
function say(text) {
  const place = $("said");
  place.textContent = text;
  clearTimeout(say.timer);
  say.timer = setTimeout(() => { place.textContent = ""; }, 4000);
}

async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
    say(`${what} copied`);
  } catch (refused) {
    // Pages from the disk may lack the clipboard; a dialog with the text selected always works.
    const area = h("textarea", { readonly: true, rows: 16, "aria-label": what });
    area.value = text;
    const dialog = h("dialog.copy", { "aria-label": what }, h("p", {}, `${what}: press Ctrl-C, then Escape`), area);
    dialog.addEventListener("close", () => dialog.remove());
    document.body.append(dialog);
    dialog.showModal();
    area.select();
  }
}

function offer(name, text) {
  const link = h("a", { href: URL.createObjectURL(new Blob([text], { type: "text/plain" })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
