// The table of stored series by study: the newest on top as they are stored, older ones on demand, or a search's results.

import { badge, byId, el, row, write } from "./dom.js";
import * as filters from "./filters.js";
import { STUDY_VERDICTS, VERDICTS, count, date, images, many, patient, utc, when } from "./format.js";
import { ask } from "./stream.js";
import { uid } from "./uid.js";

const LABELS = [["Series"], ["Modality"], ["Images", "number"], ["Verdict"], ["From"], ["Stored", "number"]];
const PAGE = 50;
const AGAIN_MS = 5000; // pause before the first page is asked for again
const MOST_PENDING = 200; // series that are kept until the first page is there
const MOST_NAMED = 3; // missing series that a study's heading names

const rows = new Map(); // UID of a series: { tr, number of its change, study }
const studies = new Map(); // UID: { body, its rows, how many it has, the parts that change }
const states = new Map(); // UID: how a study stands; of those that are shown, or will be
let newest = 0;
let next = null; // where the next page begins
let pages = 0; // pages that are shown
let pending = []; // series that were stored while the first page was being loaded
let asked = null; // the AbortController of the last request
let asking = 0; // requests for a page that are not answered yet
let again = 0; // timer
let since = 0; // series stored since the search was done

const table = () => byId("stored-table");

// --- rows and studies ---

function make(series) {
  const [tr, cells] = row(LABELS);
  tr.className = "series";
  const href = `#series/${encodeURIComponent(series.SeriesInstanceUID)}`;
  cells[0].append(el("a", { href }, series.SeriesDescription || "no description"));
  cells[0].append(uid(series.SeriesInstanceUID, "Series Instance UID"));
  cells[1].append(series.Modality ?? "–");
  const counted = images(series.NumInstances, series.ExpectedInstances);
  cells[2].append(counted);
  cells[2].classList.toggle("one", counted === "1");
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
  const state = el("span", { className: "state-of-study" });
  const parts = [name, about, el("span", { className: "of-study" }, shown, all), state, uid(of, "Study Instance UID")];
  const head = el("th", { role: "rowheader", scope: "rowgroup", colSpan: LABELS.length }, ...parts);
  const body = el("tbody", { role: "rowgroup" }, el("tr", { role: "row", className: "study" }, head));
  const study = { uid: of, body, has: new Set(), total: 0, name, about, shown, all, state };
  studies.set(of, study);
  judge(study);
  return study;
}

/** Write a study's heading from its latest series. */
function tell(study, series) {
  write(study.name, patient(series.PatientName));
  const about = [
    series.PatientID ?? "no PatientID",
    series.StudyDate && date(series.StudyDate),
    series.StudyDescription,
    series.AccessionNumber && `Acc. ${series.AccessionNumber}`,
  ];
  write(study.about, about.filter(Boolean).join(" · "));
  study.total = Math.max(series.SeriesInStudy ?? 0, states.get(study.uid)?.NumSeries ?? 0);
}

/** Write how a study stands: its verdict, with what it rests on as a title, its images, and what is missing. */
function judge(study) {
  const known = states.get(study.uid);
  if (!known) return;
  study.total = known.NumSeries;
  const stands = known.Verdict ?? (known.Withdrawn ? "declared incomplete" : "open");
  const verdict = badge(`study ${stands}`, known.Verdict ?? "none");
  verdict.title = known.Basis ?? (known.Verdict ? STUDY_VERDICTS[known.Verdict] : "its verdict is still to come");
  study.state.replaceChildren(verdict, el("span", { className: "hint" }, imagesOf(known)), ...lacks(known));
  countRows(study);
}

const imagesOf = ({ NumInstances: here, ExpectedInstances: expected }) =>
  expected > here ? `${count(here)} of ${many(expected, "image", "images")}` : many(here, "image", "images");

function* lacks({ MissingSeries: required, ExpectedSeries, NumSeries, Incomplete, Gaps, FalseCompletions }) {
  const titled = (made, title) => Object.assign(made, { title });
  const series = Math.max(required.length, (ExpectedSeries ?? 0) - NumSeries);
  if (required.length) {
    const names = required.slice(0, MOST_NAMED).join(", ") + (required.length > MOST_NAMED ? ", …" : "");
    yield titled(badge(`missing: ${names}`, "bad"), `Required series that are not here: ${required.join(", ")}`);
  } else if (series) {
    yield titled(badge(`${many(series, "series", "series")} missing`, "bad"), `Its PACS has ${count(ExpectedSeries)} series`);
  }
  if (Incomplete) yield badge(`${many(Incomplete, "series lacks", "series lack")} images`, "bad");
  const gaps = Object.values(Gaps);
  if (gaps.length) yield titled(badge(gaps.length > 1 ? `gaps in ${many(gaps.length, "series", "series")}` : gaps[0], "warn"), `InstanceNumbers: ${gaps.join("; ")}`);
  if (FalseCompletions) yield badge("was too early", "warn");
}

/** Take how studies stand, and write it where they are shown. */
function take(told) {
  for (const one of told) {
    states.delete(one.StudyInstanceUID);
    states.set(one.StudyInstanceUID, one);
    if (studies.has(one.StudyInstanceUID)) judge(studies.get(one.StudyInstanceUID));
  }
  for (const id of states.keys()) {
    if (states.size <= studies.size + MOST_PENDING) break;
    if (!studies.has(id)) states.delete(id);
  }
}

function countRows(study) {
  const all = Math.max(study.total, study.has.size);
  write(study.shown, study.has.size < all ? `${count(study.has.size)} of ${many(all, "series", "series")}` : many(all, "series", "series"));
  study.all.hidden = study.has.size === all;
}

/** Add the row of a series to its study: at the bottom, or on top of everything. */
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
  states.clear();
  newest = 0;
}

/** Put series on top that are newer than all shown ones; a row that was shown moves there. */
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

/** Add what was stored since the last frame. Results of a search stay as they are; only a counter grows. */
export function show(_, frame) {
  if (!filters.isPlain()) return frame.Full && !pages && !asking ? begin() : sinceThen(frame);
  if (frame.Full && !follows(frame.Stored)) return begin();
  take(frame.Studies ?? []);
  if (!pages) {
    pending = [...frame.Stored, ...pending].slice(0, MOST_PENDING);
    return undefined;
  }
  top(frame.Stored);
  trim();
  return empty();
}

/** Tell, after a reconnection, if nothing was missed in between. */
const follows = (stored) =>
  pages > 0 && stored.some(({ SeriesInstanceUID, Number }) => Number === newest && rows.has(SeriesInstanceUID));

/** Remove the oldest rows beyond the pages that were asked for, so that the page does not grow without end. */
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

/** Load the first page: of the newest series, or of the search's results. */
async function begin() {
  clearTimeout(again);
  pages = 0;
  next = null;
  pending = [];
  if ((await more()) === null && !pages) again = setTimeout(begin, AGAIN_MS);
}

/** Load and show the next page; return it, or what get() returns instead. */
async function more() {
  const plain = filters.isPlain();
  asking += 1;
  const page = await get(next ? { [plain ? "before" : "skip"]: next } : {});
  asking -= 1;
  if (!page) return page;
  if (!pages) {
    const pendingStates = [...states.values()];
    clear();
    take(pendingStates);
    since = 0;
  }
  pages += 1;
  take(page.studies.filter((study) => !(states.get(study.StudyInstanceUID)?.UpdatedAt > study.UpdatedAt)));
  const others = page.series.filter((series) => !rows.has(series.SeriesInstanceUID)); // the others have moved up
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
    ? `; parts of words were searched for only in the ${count(LookedThrough)} series that changed last`
    : "";
  const rest = next !== null || more ? ", and there are more" : "";
  write(byId("search-result"), plain ? "" : `${count(rows.size)} found${rest}${within}`);
}

/** Ask for one page; return null if there is no answer, undefined if another request has replaced this one. */
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
