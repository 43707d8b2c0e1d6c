// What a user with an admin key can do: the dialog for it, the request, and the message about its outcome.

import { byId, el, write } from "./dom.js";
import { ask } from "./stream.js";

let may = false;
let token = null; // of this browser's session; null if the server needs no key
let opener = null;
let shown = 0; // counts dialogs, so that a late answer does not fill another one

const dialog = byId("action");

/** Take over what the session may do; each login has its own token. */
export function allow({ Scopes, Token }) {
  may = Scopes.includes("admin");
  token = Token;
}

/** Nobody is logged in any more. */
export function forget() {
  may = false;
  token = null;
  if (dialog.open) dialog.close();
}

/** Return a button that opens a dialog; null if the user may not act. */
export function opens(words, open) {
  if (!may) return null;
  const button = el("button", { type: "button", className: "quiet act" }, words);
  button.addEventListener("click", open);
  return button;
}

/** Open the dialog and fill it with what `fill` returns. `fill` gets `still()`, which tells if this dialog is still open. */
export async function open(title, fill) {
  shown += 1;
  const mine = shown;
  const still = () => mine === shown && dialog.open;
  write(byId("action-title"), title);
  write(byId("action-said"), "");
  body("Loading …");
  if (!dialog.open) {
    opener = document.activeElement;
    dialog.showModal();
  }
  try {
    const filled = await fill(still);
    if (still() && filled) byId("action-body").replaceChildren(...[filled].flat());
  } catch (error) {
    if (still()) byId("action-body").replaceChildren(el("p", { className: "problem", role: "alert" }, error.message));
  }
}

function body(words) {
  byId("action-body").replaceChildren(el("p", { className: "empty" }, words));
}

/** Return the server's answer. Throws an Error with the server's words. */
export async function get(path) {
  return answered(await ask(path));
}

/** Send a request that changes something; return the answer. Throws an Error with the server's words. */
export async function send(method, path, wanted) {
  const headers = token ? { "X-CSRF-Token": token } : {};
  if (wanted) headers["Content-Type"] = "application/json";
  return answered(await ask(path, { method, headers, body: wanted && JSON.stringify(wanted) }));
}

function answered([status, answer]) {
  if (status >= 200 && status < 300) return answer;
  const detail = answer?.detail;
  if (Array.isArray(detail)) throw new Error(detail.map(({ loc, msg }) => `${loc.at(-1)}: ${msg}`).join("; "));
  throw new Error(detail ?? "the server does not answer; try again");
}

/** Return a button that runs `act`, never twice at the same time. An error is shown beside it, and the message that `act` returns in the dialog. */
export function does(words, act, kind = "") {
  const problem = el("span", { className: "problem", role: "alert" });
  const button = el("button", { type: "button", className: kind }, words);
  button.addEventListener("click", async () => {
    if (button.hasAttribute("aria-disabled")) return; // it is already running
    button.setAttribute("aria-disabled", "true");
    write(problem, "");
    try {
      const said = await act();
      if (said) write(byId("action-said"), said);
    } catch (error) {
      write(problem, error.message);
    } finally {
      button.removeAttribute("aria-disabled");
    }
  });
  return el("span", { className: "does" }, button, problem);
}

/** Return such a button for something that cannot be undone: at first it shows `warning` and asks. */
export function asksFirst(words, warning, act) {
  const place = el("span", { className: "does" });
  const ask = el("button", { type: "button", className: "quiet" }, words);
  const no = el("button", { type: "button", className: "quiet" }, "Keep");
  const sure = el("span", { className: "sure" }, el("span", {}, warning), does(words, act, "danger"), no);
  ask.addEventListener("click", () => {
    place.replaceChildren(sure);
    no.focus();
  });
  no.addEventListener("click", () => {
    place.replaceChildren(ask);
    ask.focus();
  });
  place.append(ask);
  return place;
}

/** Replace the dialog's content by a message. */
export function done(words) {
  byId("action-body").replaceChildren();
  write(byId("action-said"), words);
  byId("close-action").focus();
}

/** Return radio buttons; `chosen(value)` is called when one is selected. */
export function choices(legend, name, options, chosen) {
  const made = options.map(([value, words, hint]) => {
    const radio = el("input", { type: "radio", name, value });
    radio.addEventListener("change", () => chosen(value));
    return el("label", { className: "choice" }, radio, el("span", {}, words, el("span", { className: "second" }, hint)));
  });
  return el("fieldset", {}, el("legend", {}, legend), ...made);
}

byId("close-action").addEventListener("click", () => dialog.close());
dialog.addEventListener("close", () => {
  shown += 1;
  byId("action-body").replaceChildren();
  write(byId("action-said"), "");
  const below = byId(byId("series").open ? "close-series" : "headline"); // takes the focus if the pressed button is gone
  (opener?.isConnected && opener !== document.body ? opener : below).focus();
});
