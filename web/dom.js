// Elements made and written: text only, never HTML, since patients' names are what senders make them.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

/** An element with these properties and children (elements or text). */
export function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** The same in a picture: attributes instead of properties. */
export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Change what an element says, if it says something else. */
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Change an attribute of an element, if it is another. */
export function mark(element, name, value) {
  if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}

/** A row of cells, each with its column's name for narrow screens. */
export function row(labels) {
  const cells = labels.map(([label, kind]) => el("td", { role: "cell", className: kind || "", "data-label": label }));
  return [el("tr", { role: "row" }, ...cells), cells];
}

/** Words in a coloured box; the colour says nothing that the words do not. */
export const badge = (words, kind) => el("span", { className: `badge ${kind}` }, words);
