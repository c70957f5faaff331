// The page's data, and how its elements are made. Text is never parsed as HTML.

const data = JSON.parse(document.getElementById("data").textContent);
const at = id => document.getElementById(id);
const make = (tag, parent, text, attributes) => {
  const element = parent.appendChild(document.createElement(tag));
  if (text !== undefined && text !== null) element.textContent = text;
  return Object.assign(element, attributes);
};
const draw = (tag, parent, attributes, text) => {
  const element = parent.appendChild(document.createElementNS(parent.namespaceURI, tag));
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
};
const words = name => name.replaceAll("_", " ");
const plural = (n, what) => `${n} ${what}${n === 1 ? "" : "s"}`;
