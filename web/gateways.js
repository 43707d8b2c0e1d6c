// A card for each gateway: its state, and what it holds.

import { opens } from "./acting.js";
import { dismiss } from "./declare.js";
import { byId, el, mark, write } from "./dom.js";
import { bytes, compared, count, many, seconds, utc, when } from "./format.js";

const FIGURES = [
  "Associations",
  "Open series",
  "Inbox",
  "Reports waiting",
  "Dead letters",
  "Images received",
  "Refused",
  "Running for",
];
const DEAD = FIGURES.indexOf("Dead letters");
const cards = new Map(); // id: the parts that change

function make(id) {
  const name = el("h3", {}, id);
  const state = el("p", { className: "state" });
  const title = el("p", { className: "hint" });
  const values = FIGURES.map(() => el("dd", {}, el("span"), el("span", { className: "second" })));
  const list = el("dl", {}, ...FIGURES.map((figure, i) => el("div", {}, el("dt", {}, figure), values[i])));
  const version = el("p", { className: "hint release" });
  const gone = opens("Dismiss …", () => dismiss(id));
  const inside = el("div", { className: "card gateway" }, name, state, title, version, list, gone);
  return { card: el("li", {}, inside), state, title, version, values, gone };
}

function condition({ silent, refused, silentS, seenAt, state }) {
  if (refused) return ["bad", `Refused by this server since ${when(seenAt)}: ${refused}`];
  if (silent) return ["bad", `Silent for ${seconds(silentS)}, since ${when(seenAt)}`];
  if (state.Reason) return ["bad", `Accepts no images: ${state.Reason}`];
  return ["good", "Receiving"];
}

/** Say a gateway's version, and if it differs from the server's. */
function release(theirs, ours) {
  const named = theirs ? `version ${theirs}` : "version before 0.2";
  const than = compared(theirs, ours);
  return than === "same" ? named : `${named}, ${than} than this server's ${ours}`;
}

function fill({ state, title, version, values, gone }, gateway, ours) {
  const known = gateway.state;
  const [kind, words] = condition(gateway);
  write(state, words);
  mark(state, "class", `state ${kind}`);
  mark(state, "title", `last heard from at ${utc(gateway.seenAt)}`);
  write(title, `${known.AETitle} at ${known.Address}`);
  write(version, release(known.Version, ours));
  const figures = [
    [count(known.Associations)],
    [count(known.OpenSeries), known.OpenSeries ? many(known.OpenInstances, "image", "images") : ""],
    [count(known.InboxInstances), `of ${count(known.InboxSize)}`],
    [count(known.UndeliveredReports), known.UndeliveredReports ? `for ${seconds(known.OldestUndeliveredS)}` : ""],
    [count(known.DeadLetters)],
    [count(known.Instances), bytes(known.Bytes)],
    [count(known.Refused)],
    [seconds((Date.parse(known.At) - Date.parse(known.StartedAt)) / 1000)],
  ];
  figures.forEach(([figure, more = ""], i) => {
    write(values[i].firstChild, figure);
    write(values[i].lastChild, more);
  });
  if (gone) gone.hidden = !gateway.silent; // one that is not silent would be shown again at once
  mark(values[DEAD], "class", known.DeadLetters ? "bad" : "");
}

/** Show the cards in order of their names, and a line of the gateways that stopped. */
export function show(world) {
  const present = world.present();
  const list = byId("gateways");
  for (const [id, parts] of cards) {
    if (present.some((gateway) => gateway.id === id)) continue;
    parts.card.remove();
    cards.delete(id);
  }
  present.forEach((gateway, i) => {
    if (!cards.has(gateway.id)) cards.set(gateway.id, make(gateway.id));
    const parts = cards.get(gateway.id);
    if (list.children[i] !== parts.card) list.insertBefore(parts.card, list.children[i] ?? null);
    fill(parts, gateway, world.version);
  });
  byId("no-gateways").hidden = present.length > 0;
  const over = [...world.gateways.values()].filter((gateway) => gateway.over);
  const names = over.slice(0, 10).map((gateway) => `${gateway.id} (${when(gateway.seenAt)})`);
  write(
    byId("stopped-gateways"),
    over.length ? `Stopped within a day: ${names.join(", ")}${over.length > 10 ? ", …" : ""}` : "",
  );
}
