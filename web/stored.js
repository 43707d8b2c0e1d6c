// The table of stored series, by study: the newest on top as they come, older ones on demand, or what was looked for.

import { badge, byId, el, row, write } from "./dom.js";
import * as filters from "./filters.js";
import { VERDICTS, count, date, images, many, patient, utc, when } from "./format.js";
import { ask } from "./stream.js";
import { uid } from "./uid.js";

const LABELS = [["Series"], ["Modality"], ["Images", "number"], ["Verdict"], ["From"], ["Stored", "number"]];
const PAGE = 50;
const AGAIN_MS = 5000; // where the newest page could not be had
const MOST_PENDING = 200;

const rows = new Map(); // UID of a series: { tr, number of its change, study }
const studies = new Map(); // UID: { body, its rows, how many it has, the parts that change }
let newest = 0;
let next = null; // the page behind
let pages = 0;
let pending = []; // told of while the first page was on its way
let asked = null; // the request under way
let asking = 0; // requests for a page
let again = 0;
let since = 0; // stored since something was looked for

const table = () => byId("stored-table");

// --- rows and studies ---

function make(series) {
  const [tr, cells] = row(LABELS);
  tr.className = "series";
  const href = `#series/${encodeURIComponent(series.SeriesInstanceUID)}`;
  cells[0].append(el("a", { href }, series.SeriesDescription || "no description"));
  cells[0].append(uid(series.SeriesInstanceUID, "Series Instance UID"));
  cells[1].append(series.Modality ?? "–");
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
  if (series.Doubtful) yield badge("doubtful", "warn");
}

function makeStudy(of) {
  const name = el("span", { className: "patient" });
  const about = el("span");
  const shown = el("span", { className: "hint" });
  const all = el("a", { href: `?${new URLSearchParams({ search: of })}`, hidden: true }, "show all");
  all.addEventListener("click", (event) => {
    event.preventDefault();
    filters.want({ search: of });
  });
  const parts = [name, about, el("span", { className: "of-study" }, shown, all), uid(of, "Study Instance UID")];
  const head = el("th", { role: "rowheader", scope: "rowgroup", colSpan: LABELS.length }, ...parts);
  const body = el("tbody", { role: "rowgroup" }, el("tr", { role: "row", className: "study" }, head));
  const study = { uid: of, body, has: new Set(), total: 0, name, about, shown, all };
  studies.set(of, study);
  return study;
}

/** What a study's head says, as the series told last has it. */
function tell(study, series) {
  write(study.name, patient(series.PatientName));
  const about = [
    series.PatientID ?? "no PatientID",
    series.StudyDate && date(series.StudyDate),
    series.StudyDescription,
    series.AccessionNumber && `Acc. ${series.AccessionNumber}`,
  ];
  write(study.about, about.filter(Boolean).join(" · "));
  study.total = series.SeriesInStudy ?? 0;
}

function countRows(study) {
  const all = Math.max(study.total, study.has.size);
  write(study.shown, study.has.size < all ? `${count(study.has.size)} of ${many(all, "series", "series")}` : many(all, "series", "series"));
  study.all.hidden = study.has.size === all;
}

/** The row of a series, in its study: below what is there, or on top of all. */
function keep(series, onTop) {
  const { SeriesInstanceUID, StudyInstanceUID, Number: number } = series;
  const made = !studies.has(StudyInstanceUID);
  const study = made ? makeStudy(StudyInstanceUID) : studies.get(StudyInstanceUID);
  const tr = make(series);
  rows.set(SeriesInstanceUID, { uid: SeriesInstanceUID, tr, number, study });
  study.has.add(tr);
  if (made || onTop) tell(study, series);
  if (onTop) study.body.rows[0].after(tr);
  else study.body.append(tr);
  if (onTop) toTop(study.body);
  else if (made) table().append(study.body);
  countRows(study);
  newest = Math.max(newest, number ?? 0);
}

function toTop(body) {
  if (table().tBodies[0] === body) return;
  const focused = body.contains(document.activeElement) && document.activeElement;
  table().tHead.after(body);
  if (focused) focused.focus({ preventScroll: true });
}

function drop(known) {
  const { tr, study } = known;
  tr.remove();
  study.has.delete(tr);
  rows.delete(known.uid);
  if (study.has.size) return countRows(study);
  study.body.remove();
  return studies.delete(study.uid);
}

function clear() {
  for (const study of studies.values()) study.body.remove();
  studies.clear();
  rows.clear();
  newest = 0;
}

/** Put on top what is newer than all that is there; a row that was there moves. */
function top(stored) {
  const news = stored.filter((series) => series.Number > newest);
  for (const series of news.reverse()) {
    const before = rows.get(series.SeriesInstanceUID);
    const hadFocus = before?.tr.contains(document.activeElement);
    if (before) drop(before);
    keep(series, true);
    if (hadFocus) rows.get(series.SeriesInstanceUID).tr.querySelector("a").focus({ preventScroll: true });
  }
}

// --- the newest ---

/** Take what was stored since the frame before; what was looked for stays as it is. */
export function show(_, frame) {
  if (!filters.isPlain()) return frame.Full && !pages && !asking ? begin() : sinceThen(frame);
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

/** Nobody scrolls a page that grows for ever: what was not asked for goes, the oldest first. */
function trim() {
  if (pages && !asking && rows.size > PAGE * pages) {
    const oldest = [...rows.values()].sort((a, b) => a.number - b.number).slice(0, rows.size - PAGE * pages);
    oldest.forEach(drop);
    next = Math.max(next ?? 0, oldest.at(-1).number + 1);
  }
  byId("older").hidden = next === null;
}

function sinceThen(frame) {
  since += frame.Full ? 0 : frame.Stored.length;
  byId("look-again").hidden = since === 0;
  if (since) write(byId("look-again"), `${count(since)} stored since: look again`);
}

function empty() {
  byId("nothing-stored").hidden = rows.size > 0 || !pages;
  write(byId("nothing-stored"), filters.isPlain() ? "No series is stored yet." : "No match");
}

// --- a page after the other ---

/** The first page, of the newest or of what is looked for. */
async function begin() {
  clearTimeout(again);
  pages = 0;
  next = null;
  pending = [];
  if ((await more()) === null && !pages) again = setTimeout(begin, AGAIN_MS);
}

/** The next page; what get() says where there is none. */
async function more() {
  const plain = filters.isPlain();
  asking += 1;
  const page = await get(next ? { [plain ? "before" : "skip"]: next } : {});
  asking -= 1;
  if (!page) return page;
  if (!pages) {
    clear();
    since = 0;
  }
  pages += 1;
  const others = page.series.filter((series) => !rows.has(series.SeriesInstanceUID)); // that stands further up by now
  for (const series of others) keep(series, false);
  next = page.next;
  top(pending);
  pending = [];
  if (plain) trim();
  byId("older").hidden = next === null;
  byId("look-again").hidden = since === 0;
  found(page, plain);
  empty();
  return page;
}

function found({ LookedThrough, more }, plain) {
  const within = LookedThrough
    ? `; what stands inside of a name or a description: among the ${count(LookedThrough)} that changed last`
    : "";
  const first = more ? "the first " : "";
  const of = next === null ? "" : " of more";
  write(byId("search-result"), plain ? "" : `${first}${count(rows.size)}${of} found${within}`);
}

/** One page; null where there is no answer, undefined where another question came in between. */
async function get(place) {
  asked?.abort();
  asked = new AbortController();
  const query = new URLSearchParams({ limit: PAGE, ...filters.query(), ...place });
  try {
    const [status, page] = await ask(`overview/series?${query}`, { signal: asked.signal });
    if (status !== 200) write(byId("search-result"), "The server does not answer; try again.");
    return status === 200 ? page : null;
  } catch {
    return undefined;
  }
}

export function forget() {
  asked?.abort();
  clearTimeout(again);
  clear();
  pages = 0;
  write(byId("search-result"), "");
}

byId("older").addEventListener("click", more);
byId("look-again").addEventListener("click", begin);
filters.listen(() => byId("page").hidden || begin());
