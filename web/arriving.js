// The table of series that arrive: rows are kept and only changed cells written, for there may be hundreds a second.

import { badge, byId, el, mark, row, write } from "./dom.js";
import { VERDICTS, count, images, seconds, utc, when } from "./format.js";

const LABELS = [
  ["From"],
  ["Series", "uid"],
  ["Images", "number"],
  ["Last image", "number"],
  ["State"],
  ["Gateway", "uid"],
];
const KEPT_MS = 12000; // with its verdict
const UNHEARD_MS = 60000; // reported by its gateway, and not stored here
const STORED = 1000; // remembered, for those that are stored before their gateway says so
const WAITING = {
  "for images": "waits for images",
  "for silence": "waits for silence",
  "for the PACS": "asks the PACS",
  "to be reported": "about to be reported",
};

const rows = new Map(); // gateway and UID: the row
const stored = new Map(); // UID: its last row

function make(gateway, series) {
  const [tr, cells] = row(LABELS);
  write(cells[0], series.Source);
  write(cells[1], series.SeriesInstanceUID);
  mark(cells[1], "title", series.SeriesInstanceUID);
  write(cells[5], gateway);
  return { gateway, tr, cells, endsAt: Infinity, done: 0, isStored: false };
}

function fill(one, series) {
  one.series = series;
  one.endsAt = Infinity;
  const expected = series.Expected;
  write(one.cells[2], images(series.Instances, expected));
  mark(one.cells[3], "title", utc(series.LastReceivedAt));
  progress(one, series.Instances, expected);
  write(one.cells[4], WAITING[series.Waiting]);
  if (series.Revision > 1) mark(one.cells[4], "title", "more images came after it had been reported");
}

function progress(one, n, expected) {
  const done = expected ? Math.min(100, Math.round((100 * n) / expected)) : 0;
  if (done !== one.done) one.cells[2].style.setProperty("--done", `${done}%`);
  one.done = done;
}

/** Its gateway has reported it: show what it was stored as, for some seconds. */
function end(one, now) {
  const uid = one.series.SeriesInstanceUID;
  const as = stored.get(uid);
  const isStored = as && Date.parse(as.UpdatedAt) >= Date.parse(one.series.LastReceivedAt);
  if (isStored) {
    write(one.cells[2], images(as.NumInstances, as.ExpectedInstances));
    progress(one, as.NumInstances, as.ExpectedInstances);
    const verdict = as.Verdict ?? "stored";
    one.cells[4].replaceChildren(
      badge(verdict, verdict),
      ` after ${seconds((Date.parse(as.UpdatedAt) - Date.parse(one.series.LastReceivedAt)) / 1000)}`,
    );
    mark(one.cells[4], "title", VERDICTS[verdict] ?? "");
    one.cells[1].replaceChildren(el("a", { href: `#series/${encodeURIComponent(uid)}` }, uid));
    one.endsAt = now + KEPT_MS;
  } else if (one.endsAt === Infinity) {
    write(one.cells[4], "reported, on its way");
    one.endsAt = now + UNHEARD_MS;
  }
  one.isStored = isStored;
}

function remember(frame) {
  for (const series of [...frame.Stored].reverse()) {
    stored.delete(series.SeriesInstanceUID);
    stored.set(series.SeriesInstanceUID, series);
  }
  for (const uid of stored.keys()) {
    if (stored.size <= STORED) break;
    stored.delete(uid);
  }
}

export function forget() {
  for (const one of rows.values()) one.tr.remove();
  rows.clear();
}

/** Take what changed since the frame before. */
export function show(world, frame) {
  remember(frame);
  const body = byId("arriving").tBodies[0];
  const begun = document.createDocumentFragment();
  for (const [gateway, { Arriving, Gone }] of Object.entries(frame.Gateways)) {
    for (const series of world.gateways.get(gateway).over ? [] : Arriving) {
      const key = `${gateway} ${series.SeriesInstanceUID}`;
      let one = rows.get(key);
      if (!one) {
        one = make(gateway, series);
        rows.set(key, one);
        begun.prepend(one.tr);
      }
      if (one.isStored) {
        one.isStored = false;
        write(one.cells[1], series.SeriesInstanceUID);
      }
      fill(one, series);
    }
    if (frame.Full) Gone.push(...missing(world.gateways.get(gateway)));
    for (const uid of Gone) if (rows.has(`${gateway} ${uid}`)) end(rows.get(`${gateway} ${uid}`), world.now);
  }
  body.prepend(begun);
  age(world);
}

/** After a reconnection: what ended while nobody told us. */
function missing(gateway) {
  const mine = [...rows.values()].filter((one) => one.gateway === gateway.id);
  return mine.map((one) => one.series.SeriesInstanceUID).filter((uid) => !gateway.arriving.has(uid));
}

function age(world) {
  let open = 0;
  for (const [key, one] of rows) {
    const ended = one.endsAt < Infinity;
    if (ended && !one.isStored) end(one, world.now);
    const over = world.gateways.get(one.gateway)?.over ?? true; // or forgotten: nobody will say what became of it
    if (ended ? one.endsAt <= world.now : over) {
      one.tr.remove();
      rows.delete(key);
      continue;
    }
    open += !ended;
    const quiet = (world.now - Date.parse(one.series.LastReceivedAt)) / 1000;
    write(
      one.cells[3],
      quiet < 1.5 ? "now" : quiet < 90 ? `${Math.round(quiet)} s ago` : when(one.series.LastReceivedAt),
    );
    mark(one.tr, "class", ended ? "ended" : quiet > 120 ? "stuck" : "");
  }
  write(byId("arriving-count"), open ? count(open) : "");
  byId("nothing-arriving").hidden = rows.size > 0;
  byId("arriving-scroll").hidden = rows.size === 0;
}
