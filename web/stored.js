// The table of stored series: the newest on top as they come, older ones on demand, or what a search finds.

import { badge, byId, el, row } from "./dom.js";
import { VERDICTS, count, images, many, patient, utc, when } from "./format.js";
import { ask } from "./stream.js";

const LABELS = [["Patient"], ["Series"], ["Images", "number"], ["Verdict"], ["From"], ["Stored", "number"]];
const PAGE = 50;
const WAIT_MS = 250; // for the next key
const AGAIN_MS = 5000; // where the newest page could not be had
const MOST_PENDING = 200;

const rows = new Map(); // UID: its row, in the list, not in a search
const uids = new WeakMap(); // the other way round
const numbers = new WeakMap(); // row: number of its change
let newest = 0;
let next = null;
let pages = 0;
let pending = []; // told of while the first page was on its way
let asked = null; // the request under way
let asking = 0; // requests for a page
let timer = 0;
let again = 0;

const body = () => byId("stored-table").tBodies[0];
const isSearch = () => byId("search").value.trim() !== "";

function make(series) {
  const [tr, cells] = row(LABELS);
  const name = el("a", { href: `#series/${encodeURIComponent(series.SeriesInstanceUID)}` }, patient(series.PatientName));
  cells[0].append(name, el("span", { className: "second" }, series.PatientID ?? "no PatientID"));
  cells[1].append([series.Modality, series.SeriesDescription].filter(Boolean).join(" · ") || "–");
  cells[1].append(el("span", { className: "second uid", title: series.SeriesInstanceUID }, series.SeriesInstanceUID));
  cells[2].append(images(series.NumInstances, series.ExpectedInstances));
  const verdict = series.Verdict ?? "none";
  cells[3].append(badge(series.Verdict ?? "no verdict", verdict), ...flags(series));
  cells[3].append(el("span", { className: "second" }, VERDICTS[verdict] ?? ""));
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
  const news = stored.filter((series) => series.Number > newest);
  for (const series of news.reverse()) {
    const before = rows.get(series.SeriesInstanceUID);
    const hadFocus = before?.contains(document.activeElement);
    before?.remove();
    body().prepend(keep(series));
    if (hadFocus) body().rows[0].querySelector("a").focus({ preventScroll: true });
  }
}

/** Take what was stored since the frame before; what a search has found stays as it is. */
export function show(_, frame) {
  if (isSearch()) return undefined;
  if (frame.Full && !follows(frame.Stored)) return begin();
  if (!pages) {
    pending = [...frame.Stored, ...pending].slice(0, MOST_PENDING);
    return undefined;
  }
  top(frame.Stored);
  trim();
  return empty();
}

/** After a reconnection: whether nothing was missed in between. */
const follows = (stored) =>
  pages > 0 && stored.some(({ SeriesInstanceUID, Number }) => Number === newest && rows.has(SeriesInstanceUID));

/** Nobody scrolls a page that grows for ever: what was not asked for goes. */
function trim() {
  while (pages && !asking && body().rows.length > PAGE * pages) {
    const last = body().rows[body().rows.length - 1];
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
  clearTimeout(again);
  pages = 0;
  next = null;
  pending = [];
  if ((await more()) === null && !pages && !isSearch()) again = setTimeout(begin, AGAIN_MS);
}

/** The next page; what get() says where there is none. */
async function more() {
  asking += 1;
  const page = await get({ limit: PAGE, ...(next ? { before: next } : {}) });
  asking -= 1;
  if (!page) return page;
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
  return page;
}

async function search() {
  clearTimeout(again);
  if (!isSearch()) return begin();
  const page = await get({ search: byId("search").value });
  if (!page) return;
  rows.clear();
  body().replaceChildren(...page.series.map(make));
  byId("older").hidden = true;
  const found = page.more
    ? `${count(page.series.length)} of more: type more`
    : `${count(page.series.length)} found`;
  byId("search-result").textContent = found;
  empty("No match");
}

/** One page; null where there is no answer, undefined where another question came in between. */
async function get(query) {
  asked?.abort();
  asked = new AbortController();
  try {
    const [status, page] = await ask(`overview/series?${new URLSearchParams(query)}`, { signal: asked.signal });
    if (status !== 200) byId("search-result").textContent = "The server does not answer; try again.";
    return status === 200 ? page : null;
  } catch {
    return undefined;
  }
}

export function forget() {
  asked?.abort();
  clearTimeout(again);
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
