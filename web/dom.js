// Make and change elements. They hold text and never HTML, since a sender can write anything into a patient's name.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

/** Make an element with these properties and children (elements or text). */
export function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Make an SVG element with these attributes and children. */
export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Set an element's text, if it differs. */
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Set an attribute of an element, if it differs. */
export function mark(element, name, value) {
  if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}

/** Make a row of cells, each with its column's name for narrow screens. */
export function row(labels) {
  const cells = labels.map(([label, kind]) => el("td", { role: "cell", className: kind || "", "data-label": label }));
  return [el("tr", { role: "row" }, ...cells), cells];
}

/** Make a coloured box with words. The colour adds nothing to the words. */
export const badge = (words, kind) => el("span", { className: `badge ${kind}` }, words);
