// A UID cut in the middle where it is too long for its place, whole to whoever selects it, and a button that copies it.

import { el } from "./dom.js";

const TAIL = 12; // characters that are always seen
const SAID_MS = 1500;

/** Text that is cut between its beginning and its end, and copied by a button. */
export function uid(text, what) {
  const copy = el("button", { type: "button", className: "copy", title: `Copy ${what}` });
  copy.setAttribute("aria-label", `Copy ${what} ${text}`);
  copy.addEventListener("click", () => copied(copy, text));
  const parts = [el("span", { className: "begin" }, text.slice(0, -TAIL)), el("span", {}, text.slice(-TAIL))];
  return el("span", { className: "second uid with-copy" }, el("span", { className: "whole", title: text }, ...parts), copy);
}

async function copied(button, text) {
  const done = (await byClipboard(text)) || bySelection(text);
  button.classList.toggle("done", done);
  button.title = done ? "Copied" : "Not copied: select it, and press Ctrl-C";
  setTimeout(() => button.classList.remove("done"), SAID_MS);
  button.focus({ preventScroll: true });
}

/** Browsers have it over https and on this machine only. */
async function byClipboard(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false;
  }
}

function bySelection(text) {
  const area = el("textarea", { value: text, className: "unseen" });
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  return done;
}
