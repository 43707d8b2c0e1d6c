// Search, filters and sorting of the stored series: in the form above the table, and in the page's address.

import { byId, mark } from "./dom.js";
import { VERDICTS } from "./format.js";

const SORTS = ["Stored", "Patient", "StudyDate", "Modality", "Verdict", "Source"];
const NEWEST = "Stored";
const WAIT_MS = 250; // pause in typing after which the search begins
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

let wanted = {}; // the current search, filters and order by name; without empty ones
let changed = () => {};
let timer = 0;

const midnight = (day) => new Date(`${day}T00:00:00`);

/** Return only known and well-formed values; the default order is left out. */
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

/** Tell if the newest series are shown, without any filter. */
export const isPlain = () => Object.keys(wanted).length === 0;

/** Tell if words are searched for. */
export const hasWords = () => Boolean(wanted.search);

/** Return the parameters of the request to the server. */
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

/** Change what is shown, and the address; the browser's Back button leads to what was shown before. */
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

/** Show what the address says. */
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

/** Sort by a column; if it is sorted by it already, reverse the order. Texts begin with A, times with the newest. */
function sortBy(sort) {
  const again = (wanted.sort ?? NEWEST) === sort;
  const first = sort === NEWEST || sort === "StudyDate" ? "" : "true";
  want({ ...wanted, sort, ascending: again ? (wanted.ascending ? "" : "true") : first });
}

/** Remove the search from the form and the address. */
export function forget() {
  clearTimeout(timer);
  if (location.search) history.replaceState(null, "", location.pathname);
  show({});
}

/** Set up the form, and call `change` whenever the search changes. */
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
