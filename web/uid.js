// Show a UID: shortened in the middle if there is no room, complete if it is selected, with a button that copies it.

import { el } from "./dom.js";

const TAIL = 12; // characters at the end that are always shown
const SAID_MS = 1500; // how long the button shows that the text was copied

/** Return a UID that is shortened between its beginning and its end, with a button that copies it. */
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

/** Copy by the clipboard API, which browsers offer only over https and on this machine. Return if it worked. */
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
