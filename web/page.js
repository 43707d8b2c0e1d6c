// The live page: who we are, what is shown, and what happens when the connection breaks.

import * as acting from "./acting.js";
import * as arriving from "./arriving.js";
import * as charts from "./charts.js";
import { settle } from "./conflicts.js";
import { dismiss } from "./declare.js";
import { byId, el, mark, write } from "./dom.js";
import * as filters from "./filters.js";
import { count, many, quantile, seconds, when } from "./format.js";
import * as gateways from "./gateways.js";
import { headline, problems } from "./health.js";
import { settleLetters, settleWebhook } from "./letters.js";
import * as series from "./series.js";
import * as sources from "./sources.js";
import * as stored from "./stored.js";
import { ask, follow } from "./stream.js";
import { World } from "./world.js";

const world = new World();
let connection = null;
const session = new BroadcastChannel("session"); // to the other tabs

// --- in and out ---

function showLogin(why) {
  connection?.stop();
  acting.forget();
  world.forget();
  arriving.forget();
  stored.forget();
  sources.forget();
  gateways.show(world);
  byId("problems").replaceChildren();
  byId("page").hidden = true;
  series.route();
  byId("log-out").hidden = true;
  write(byId("who"), "");
  write(byId("version"), "");
  write(byId("log-out-problem"), "");
  say("none", "");
  tab("none", "");
  byId("login").hidden = false;
  const tells = why.includes("keys create") || why.includes("scope");
  write(byId("why"), tells ? why : "");
  byId("why").hidden = !tells;
  byId("key").focus();
}

const CURES = {
  conflicts: ["Settle …", () => settle()],
  letters: ["Replay or discard …", (id) => settleLetters(world, id)],
  untold: ["Tell again or discard …", settleWebhook],
  dismiss: ["Dismiss …", dismiss],
};

/** The button that cures a problem here; null where there is none, or somebody may only read. */
function curing({ act }) {
  if (!act) return null;
  const [words, open] = CURES[act.kind];
  return acting.opens(words, () => open(act.id));
}

function showPage({ Who, Viewer }) {
  series.viewer(Viewer);
  byId("login").hidden = true;
  byId("page").hidden = false;
  const withKey = Who !== "this machine";
  write(byId("who"), withKey ? Who.replace(/^\S+ /, "") : "no login set up");
  byId("log-out").hidden = !withKey;
  series.route();
}

async function logIn(event) {
  event.preventDefault();
  const key = byId("key").value.trim();
  const wellFormed = /^[!-~]+$/.test(key);
  const [status, answer] = wellFormed
    ? await ask("session", { method: "POST", headers: { Authorization: `Bearer ${key}` } })
    : [401, { detail: "this key is not valid" }];
  if (status === 200) {
    byId("key").value = "";
    write(byId("login-problem"), "");
    start();
  } else {
    write(byId("login-problem"), answer?.detail ?? "the server does not answer");
    byId("key").select();
  }
}

async function logOut() {
  const [status] = await ask("session", { method: "DELETE" });
  if (status === 204) {
    session.postMessage("over");
    loggedOut();
  } else write(byId("log-out-problem"), "not logged out: the server does not answer");
}

/** Whoever comes next sees not even what was looked for. */
function loggedOut() {
  showLogin("");
  filters.forget();
}

// --- what is shown ---

function say(kind, words) {
  write(byId("link"), words);
  mark(byId("link"), "class", `link ${kind}`);
  document.body.classList.toggle("stale", kind === "bad");
}

/** Trouble is seen from another tab: in this one's title, and in the colour of its icon. */
function tab(level, words) {
  const trouble = level === "bad" || level === "warn";
  const title = trouble ? `${words} · Series gateway` : "Series gateway";
  if (document.title !== title) document.title = title;
  mark(byId("icon"), "href", trouble ? `web/icon-${level}.svg` : "web/icon.svg");
}

function showStatus() {
  const wrong = [...problems(world), ...sources.problems()];
  const [level, words] = headline(world, wrong);
  tab(level, words);
  write(byId("headline"), words);
  mark(byId("status"), "class", `status ${level}`);
  const list = byId("problems");
  const known = new Map([...list.children].map((item) => [item.dataset.id, item]));
  const items = wrong.map((problem) => {
    const item = known.get(problem.id) ?? el("li", {}, el("strong"), el("span"), el("span", { className: "cure" }), curing(problem));
    item.dataset.id = problem.id;
    mark(item, "class", problem.level);
    write(item.children[0], wrong.length > 1 ? problem.what : ""); // else the headline says it
    write(item.children[1], `${wrong.length > 1 && problem.more ? ": " : ""}${problem.more} `);
    write(item.children[2], `→ ${problem.cure}`);
    return item;
  });
  if (items.length === list.children.length && items.every((item, i) => list.children[i] === item)) return;
  const focused = list.contains(document.activeElement) ? document.activeElement : null;
  list.replaceChildren(...items);
  if (focused?.isConnected) focused.focus({ preventScroll: true }); // what moves is where it was for the keyboard
}

const sum = (name) => world.present().reduce((total, gateway) => total + gateway.state[name], 0);

const FIGURES = {
  "Images a second": () => [world.rate().toFixed(world.rate() < 10 ? 1 : 0)],
  "Series arriving": () => [count(sum("OpenSeries"))],
  "Last image to row": latency,
  "Reports waiting": () => [count(sum("UndeliveredReports"))],
  "Series stored": () => [count(world.totals.Series)],
  "Last stored": () => [world.storedAt ? when(world.storedAt) : "–"],
};

/** The median, and what 95 % do not exceed: on a line of its own, since both can be hours. */
function latency() {
  const values = world.latencies.map((point) => point.s);
  return values.length ? [seconds(quantile(values, 0.5)), `p95 ${seconds(quantile(values, 0.95))}`] : ["–", ""];
}

function showFigures() {
  const list = byId("figures");
  if (!list.children.length)
    list.append(
      ...Object.keys(FIGURES).map((name) =>
        el("div", {}, el("dt", {}, name), el("dd", {}, el("span"), el("span", { className: "second" }))),
      ),
    );
  Object.values(FIGURES).forEach((figure, i) => {
    const [value, more = ""] = figure();
    write(list.children[i].lastChild.firstChild, value);
    write(list.children[i].lastChild.lastChild, more);
  });
}

function showFrame(frame) {
  world.take(frame);
  say("good", "live");
  write(byId("version"), `Series gateway ${world.version}`);
  showStatus();
  showFigures();
  charts.show(world);
  gateways.show(world);
  arriving.show(world);
  stored.show(world, frame);
  sources.show(showStatus);
  series.show(world, frame);
}

function start() {
  connection?.stop();
  let known = false;
  connection = follow({
    known(answer) {
      acting.allow(answer);
      if (!known) showPage(answer);
      known = true;
    },
    refused: showLogin,
    frame: showFrame,
    lost(why) {
      say("bad", `Connection lost, retrying: ${why}`);
      tab("warn", "Connection lost");
    },
  });
}

byId("login-form").addEventListener("submit", logIn);
byId("log-out").addEventListener("click", logOut);
session.addEventListener("message", loggedOut);
// A browser has six connections to a server over HTTP/1.1, and each stream holds one: only what is seen is followed.
document.addEventListener("visibilitychange", () => {
  if (document.hidden) connection?.stop();
  else if (byId("login").hidden) start();
});
if (!document.hidden) start();
