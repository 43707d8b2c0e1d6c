// The table of stored series: the newest on top as they come, older ones on demand, or what a search finds.

import { badge, byId, el, mark, row } from "./dom.js";
import { VERDICTS, count, images, many, patient, utc, when } from "./format.js";
import { ask } from "./stream.js";

const LABELS = [["Patient"], ["Series"], ["Images", "number"], ["Verdict"], ["From"], ["Stored", "number"]];
const PAGE = 50;
const WAIT_MS = 250; // for the next key

const rows = new Map(); // UID: its row, in the list, not in a search
const uids = new WeakMap(); // the other way round
const numbers = new WeakMap(); // row: number of its change
let newest = 0;
let next = null;
let pages = 0;
let pending = []; // told of while the first page was on its way
let asked = null; // the request under way
let timer = 0;

const body = () => byId("stored-table").tBodies[0];
const isSearch = () => byId("search").value.trim() !== "";

function make(series) {
  const [tr, cells] = row(LABELS);
  const name = el("a", { href: `#series/${series.SeriesInstanceUID}` }, patient(series.PatientName));
  cells[0].append(name, el("span", { className: "second" }, series.PatientID ?? "no PatientID"));
  cells[1].append([series.Modality, series.SeriesDescription].filter(Boolean).join(" · ") || "–");
  cells[1].append(el("span", { className: "second uid", title: series.SeriesInstanceUID }, series.SeriesInstanceUID));
  cells[2].append(images(series.NumInstances, series.ExpectedInstances));
  const verdict = series.Verdict ?? "none";
  cells[3].append(badge(series.Verdict ?? "no verdict", verdict), ...flags(series));
  mark(cells[3], "title", VERDICTS[verdict] ?? "");
  cells[4].append(series.Source ?? "–");
  cells[5].append(el("time", { dateTime: series.UpdatedAt, title: utc(series.UpdatedAt) }, when(series.UpdatedAt)));
  return tr;
}

function* flags(series) {
  if (series.ExpectedInstances > series.NumInstances)
    yield badge(`${count(series.ExpectedInstances - series.NumInstances)} missing`, "bad");
  if (series.Conflicts) yield badge(many(series.Conflicts, "conflict", "conflicts"), "bad");
  if (series.FalseCompletions) yield badge("was too early", "warn");
}

function keep(series) {
  const tr = make(series);
  rows.set(series.SeriesInstanceUID, tr);
  uids.set(tr, series.SeriesInstanceUID);
  numbers.set(tr, series.Number);
  newest = Math.max(newest, series.Number);
  return tr;
}

/** Put on top what is newer than all that is there; a row that was there moves. */
function top(stored) {
  const news = stored.filter((series) => series.Number > newest).slice(0, PAGE);
  for (const series of news.reverse()) {
    rows.get(series.SeriesInstanceUID)?.remove();
    body().prepend(keep(series));
  }
}

/** Take what was stored since the frame before; what a search has found stays as it is. */
export function show(_, frame) {
  if (isSearch()) return undefined;
  if (frame.Full) return begin(); // and after a reconnection: something may have been missed
  if (!pages) return pending.unshift(...frame.Stored);
  top(frame.Stored);
  trim();
  return empty();
}

/** Nobody scrolls a page that grows for ever: what was not asked for goes. */
function trim() {
  while (pages === 1 && body().rows.length > PAGE) {
    const last = body().rows[PAGE];
    last.remove();
    rows.delete(uids.get(last));
    next = Math.max(next ?? 0, numbers.get(last) + 1);
  }
  byId("older").hidden = next === null || isSearch();
}

function empty(text = "No series is stored yet.") {
  byId("nothing-stored").hidden = body().rows.length > 0 || !(pages || isSearch());
  byId("nothing-stored").textContent = text;
}

/** The newest page. */
async function begin() {
  pages = 0;
  next = null;
  pending = [];
  await more();
}

async function more() {
  const page = await get({ limit: PAGE, ...(next ? { before: next } : {}) });
  if (!page) return;
  if (!pages) {
    rows.clear();
    newest = 0;
    body().replaceChildren();
    byId("search-result").textContent = "";
  }
  pages += 1;
  const others = page.series.filter((series) => !rows.has(series.SeriesInstanceUID)); // that stands further up by now
  body().append(...others.map(keep));
  next = page.next;
  top(pending);
  pending = [];
  trim();
  empty();
}

async function search() {
  if (!isSearch()) return begin();
  const page = await get({ search: byId("search").value });
  if (!page) return;
  rows.clear();
  body().replaceChildren(...page.series.map(make));
  byId("older").hidden = true;
  const found = page.more
    ? `The latest ${count(page.series.length)} of more: type more to narrow it`
    : `${count(page.series.length)} found`;
  byId("search-result").textContent = found;
  empty("Nothing stored begins so.");
}

/** One page; null where another question came in between, or there is no answer. */
async function get(query) {
  asked?.abort();
  asked = new AbortController();
  try {
    const [status, page] = await ask(`overview/series?${new URLSearchParams(query)}`, { signal: asked.signal });
    if (status !== 200) byId("search-result").textContent = "The server does not answer; try again.";
    return status === 200 ? page : null;
  } catch {
    return null;
  }
}

export function forget() {
  asked?.abort();
  rows.clear();
  body().replaceChildren();
  pages = 0;
  byId("search").value = "";
  byId("search-result").textContent = "";
}

byId("older").addEventListener("click", more);
byId("search").addEventListener("input", () => {
  clearTimeout(timer);
  timer = setTimeout(search, WAIT_MS);
});
byId("search-form").addEventListener("submit", (event) => {
  event.preventDefault();
  clearTimeout(timer);
  search();
});
