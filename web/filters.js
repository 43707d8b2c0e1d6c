// What of the stored series is wanted: the form above the table, and the same in the address.

import { byId, mark } from "./dom.js";
import { VERDICTS } from "./format.js";

const SORTS = ["Stored", "Patient", "StudyDate", "Modality", "Verdict", "Source"];
const NEWEST = "Stored";
const WAIT_MS = 250; // for the next key
const oneOf = (known) => (text) => (known.includes(text) ? text : "");
const short = (most) => (text) => (text.length <= most && !/\p{Cc}/u.test(text) ? text.trim() : "");
const aDay = (text) => (/^\d{4}-\d\d-\d\d$/.test(text) && midnight(text).getDate() === Number(text.slice(8)) ? text : "");
const isTrue = oneOf(["true"]);
const KNOWN = {
  search: short(256),
  Verdict: oneOf(Object.keys(VERDICTS).filter((verdict) => verdict !== "none")),
  Modality: short(16),
  Source: short(64),
  day: aDay,
  Incomplete: isTrue,
  Conflicts: isTrue,
  Doubtful: isTrue,
  sort: oneOf(SORTS),
  ascending: isTrue,
};
const FILTERS = Object.keys(KNOWN).filter((name) => name !== "search");
const fields = () => byId("search-form").elements;

let wanted = {}; // what is shown: by name, and nothing that is empty
let changed = () => {};
let timer = 0;

const midnight = (day) => new Date(`${day}T00:00:00`);

/** What of this is known and well formed; the order that is there anyway is left out. */
function known(given) {
  const all = Object.entries(KNOWN).map(([name, read]) => [name, read(given[name] ?? "")]);
  const found = Object.fromEntries(all.filter(([, value]) => value));
  if (found.sort === NEWEST && !found.ascending) delete found.sort;
  return found;
}

const ofAddress = () => known(Object.fromEntries(new URLSearchParams(location.search)));

function ofForm() {
  const given = Object.keys(KNOWN).map((name) => {
    const field = fields()[name];
    return [name, field.type === "checkbox" ? String(field.checked) : field.value];
  });
  return known(Object.fromEntries(given));
}

/** Whether the newest series are wanted, all of them. */
export const isPlain = () => Object.keys(wanted).length === 0;

/** Whether words are looked for. */
export const hasWords = () => Boolean(wanted.search);

/** The same as the server is asked. */
export function query() {
  const { day, ascending, ...same } = wanted;
  const asked = { ...same, ...(ascending && { descending: "false" }) };
  if (day) {
    const next = midnight(day);
    next.setDate(next.getDate() + 1);
    Object.assign(asked, { UpdatedSince: midnight(day).toISOString(), UpdatedUntil: next.toISOString() });
  }
  return asked;
}

/** Show something else; the address says it, and Back leads to what was shown before. */
export function want(given, { replace = false } = {}) {
  const next = known(given);
  if (JSON.stringify(next) === JSON.stringify(wanted)) return;
  const text = String(new URLSearchParams(next));
  const address = location.pathname + (text && `?${text}`) + location.hash;
  if (replace) history.replaceState(null, "", address);
  else history.pushState(null, "", address);
  show(next);
  changed();
}

/** Keep to what the address says. */
function followAddress() {
  const next = ofAddress();
  if (JSON.stringify(next) === JSON.stringify(wanted)) return;
  show(next);
  changed();
}

function show(next) {
  wanted = next;
  for (const name of Object.keys(KNOWN)) {
    const field = fields()[name];
    const value = next[name] ?? (name === "sort" ? NEWEST : "");
    if (field.type === "checkbox") field.checked = Boolean(value);
    else if (field.value.trim() !== value) field.value = value;
  }
  const set = FILTERS.filter((name) => next[name]).length;
  byId("filters-set").textContent = set || "";
  byId("no-filters").hidden = !set;
  for (const th of byId("stored-table").tHead.rows[0].cells) {
    const buttons = [...th.querySelectorAll("[data-sort]")];
    for (const button of buttons) button.classList.toggle("sorted", button.dataset.sort === (next.sort ?? NEWEST));
    const sorted = buttons.some((button) => button.classList.contains("sorted"));
    mark(th, "aria-sort", sorted ? (next.ascending ? "ascending" : "descending") : "none");
  }
}

/** Sort by it; by what it is sorted already, the other way round. Names and words begin with A. */
function sortBy(sort) {
  const again = (wanted.sort ?? NEWEST) === sort;
  const first = sort === NEWEST || sort === "StudyDate" ? "" : "true";
  want({ ...wanted, sort, ascending: again ? (wanted.ascending ? "" : "true") : first });
}

/** Nothing of what was looked for stays in the address. */
export function forget() {
  clearTimeout(timer);
  if (location.search) history.replaceState(null, "", location.pathname);
  show({});
}

/** Call `change` whenever something else is wanted. */
export function listen(change) {
  changed = change;
  show(ofAddress());
  byId("filters").open = FILTERS.some((name) => wanted[name]);
  byId("search").addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => want(ofForm(), { replace: hasWords() && Boolean(ofForm().search) }), WAIT_MS);
  });
  byId("search-form").addEventListener("change", (event) => event.target.id !== "search" && want(ofForm()));
  byId("search-form").addEventListener("submit", (event) => {
    event.preventDefault();
    clearTimeout(timer);
    want(ofForm());
  });
  byId("no-filters").addEventListener("click", () => want({ search: wanted.search }));
  byId("stored-table").tHead.addEventListener("click", ({ target }) => target.dataset.sort && sortBy(target.dataset.sort));
  addEventListener("popstate", followAddress);
}
