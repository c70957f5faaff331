// The page's data, and how its elements are made. Text is never parsed as HTML.

const data = JSON.parse(document.getElementById("data").textContent);
const main = document.querySelector("main");
const at = id => document.getElementById(id);
const make = (tag, parent, text, attributes) => {
  const element = parent.appendChild(document.createElement(tag));
  if (text !== undefined && text !== null) element.textContent = text;
  return Object.assign(element, attributes);
};
const draw = (tag, parent, attributes, text) => {
  const element = parent.appendChild(document.createElementNS("http://www.w3.org/2000/svg", tag));
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
};
const panel = (parent, title, attributes) => {
  const found = make("section", parent, null, {className: "panel", ...attributes});
  if (title) make("h2", found, title);
  return found;
};
// A row of a table; a cell is a text, or a function that fills it.
const row = (table, cells, className = "", tag = "td") => {
  const line = make("tr", table, null, {className});
  for (const cell of cells) typeof cell === "function" ? cell(make(tag, line)) : make(tag, line, cell);
};
const header = (table, titles) => row(table, titles, "", "th");
const note = (parent, text) => make("p", parent, text, {className: "note"});
const tiles = entries => {
  const grid = make("section", main, null, {className: "tiles", id: "tiles"});
  for (const [value, text] of entries) {
    const tile = make("div", grid, null, {className: "panel tile"});
    make("b", tile, value);
    make("span", tile, text, {className: "dim"});
  }
};
// What a colour stands for.
const mark = (legend, colour, text, outline) => {
  const entry = make("span", legend);
  make("i", entry, null, outline ? {className: "outline"} : {}).style[outline ? "borderColor" : "background"] = colour;
  entry.append(text);
};
const words = name => name.replaceAll("_", " ");
const plural = (n, what) => `${n} ${what}${n === 1 ? "" : "s"}`;
