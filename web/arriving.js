// The table of arriving series, the newest first. Only changed cells are written, since hundreds may change every second.

import { opens } from "./acting.js";
import { declare } from "./declare.js";
import { byId, el, mark, row, write } from "./dom.js";
import { count, images, patient, utc, when } from "./format.js";

const LABELS = [["Patient"], ["Series"], ["Images", "number"], ["Last image", "number"], ["State"], ["From"]];
const STUCK_S = 120; // time without an image after which a row is marked as stuck
const WAITING = {
  "for images": "waits for images",
  "for silence": "waits for silence",
  "for the PACS": "asks the PACS",
  "to be reported": "about to be reported",
};

const rows = new Map(); // gateway and Key: the row

function make(gateway, series) {
  const [tr, cells] = row(LABELS);
  const uid = series.SeriesInstanceUID;
  const told = series.StudyInstanceUID !== null && series.StudyInstanceUID !== undefined;
  cells[0].append(told ? patient(series.PatientName) : "–");
  if (told) cells[0].append(el("span", { className: "second" }, series.PatientID ?? "no PatientID"));
  cells[1].append(series.SeriesDescription || "–", el("span", { className: "second uid", title: uid }, uid));
  const waits = el("span");
  const closes = opens("Declare …", () => declare(uid, told ? patient(series.PatientName) : "series"));
  if (closes) closes.setAttribute("aria-label", `Declare series ${uid}`);
  cells[4].append(waits, ...(closes ? [el("span", { className: "second" }, closes)] : []));
  cells[5].append(series.Source, el("span", { className: "second uid" }, gateway));
  return { tr, cells, waits, done: 0 };
}

function fill(one, series, now) {
  write(one.cells[2], images(series.Instances, series.Expected));
  mark(one.cells[3], "title", utc(series.LastReceivedAt));
  progress(one, series.Instances, series.Expected);
  write(one.waits, `${WAITING[series.Waiting]}${series.Revision > 1 ? ", more images after its report" : ""}`);
  const quiet = (now - Date.parse(series.LastReceivedAt)) / 1000;
  const ago = quiet < 1.5 ? "now" : quiet < 90 ? `${Math.round(quiet)} s ago` : when(series.LastReceivedAt);
  write(one.cells[3], ago);
  mark(one.tr, "class", quiet > STUCK_S ? "stuck" : "");
}

function progress(one, n, expected) {
  const done = expected ? Math.min(100, Math.round((100 * n) / expected)) : 0;
  if (done !== one.done) one.cells[2].style.setProperty("--done", `${done}%`);
  one.done = done;
}

/** Return the open series of all gateways that are shown, those that began last first. */
function open(world) {
  const all = world.present().flatMap((gateway) =>
    [...gateway.arriving].map(([key, series]) => [`${gateway.id} ${key}`, gateway.id, series]),
  );
  return all.sort(([a, , x], [b, , y]) => began(y) - began(x) || (a < b ? -1 : 1));
}

const began = (series) => Date.parse(series.FirstReceivedAt);

export function forget() {
  for (const one of rows.values()) one.tr.remove();
  rows.clear();
}

/** Show one row for each open series, and remove the rows of reported ones. */
export function show(world) {
  const body = byId("arriving").tBodies[0];
  const series = open(world);
  const keys = new Set(series.map(([key]) => key));
  for (const [key, one] of rows) {
    if (keys.has(key)) continue;
    one.tr.remove();
    rows.delete(key);
  }
  let next = body.firstElementChild;
  for (const [key, gateway, told] of series) {
    if (!rows.has(key)) rows.set(key, make(gateway, told));
    const one = rows.get(key);
    fill(one, told, world.now);
    if (one.tr === next) next = next.nextElementSibling;
    else body.insertBefore(one.tr, next);
  }
  write(byId("arriving-count"), rows.size ? count(rows.size) : "");
  byId("nothing-arriving").hidden = rows.size > 0;
  byId("arriving-scroll").hidden = rows.size === 0;
}
