// The table of sources, loaded once a minute: when each last sent, how much a day, how good its verdicts were, what was learnt.

import { badge, byId, el, row, svg, write } from "./dom.js";
import { count, date, many, seconds, utc, when } from "./format.js";
import { ask } from "./stream.js";

const EVERY_MS = 60_000;
const FEW = 10; // rows that are shown at first
const DAYS = 35; // days for which the server counts images
const MOST_NAMED = 3; // silent sources that are named in the problem
const LATELY_S = 90; // silence below this is shown as "just now", since the table is a minute old at most
const BAR = 4; // width of a day's bar in px, with a gap of one
const HEIGHT = 22;
const DAY_MS = 86_400_000;
const LABELS = [["Source"], ["Last image"], ["Images a day"], ["Verdicts"], ["Learnt waits"]];
const PHASES = {
  open: "association open",
  each: "an association an image",
  moved: "association busy with another series",
  next: "its next series begun",
  aborted: "association aborted",
  released: "associations released",
  counted: "as many as a tag says",
};

let known = []; // unusually silent sources first, then those that sent last
let askedAt = -Infinity;
let showsAll = false;
let session = 0; // counts logins, so that an answer to an earlier one is not shown

/** Return the problems with sources, in the form of health.js. */
export function problems() {
  const silent = known.filter((source) => source.Unusual);
  if (!silent.length) return [];
  const names = silent.slice(0, MOST_NAMED).map(({ Source, SilentForS }) => `${Source} for ${seconds(SilentForS)}`);
  const one = silent.length === 1;
  return [
    {
      level: "warn",
      id: "silent sources",
      what: one ? `Source ${silent[0].Source} is unusually silent` : `${count(silent.length)} sources are unusually silent`,
      more: `${names.join(", ")}${silent.length > MOST_NAMED ? ", …" : ""}; at this time of the week ${one ? "it usually sends" : "they usually send"}`,
      cure: "Check that the device is on and reaches a gateway. A day off looks the same, and passes by itself.",
    },
  ];
}

export function forget() {
  session += 1;
  known = [];
  askedAt = -Infinity;
  showsAll = false;
  fill();
}

/** Load the sources again if the last answer is a minute old, and then call `done`. */
export async function show(done) {
  if (performance.now() < askedAt + EVERY_MS) return;
  askedAt = performance.now();
  const asking = session;
  const found = await all();
  if (asking !== session || !found) return;
  known = found.sort((a, b) => b.Unusual - a.Unusual || a.SilentForS - b.SilentForS);
  fill();
  done();
}

/** Load all pages, of at most a thousand sources; return null if the server does not answer. */
async function all() {
  const found = [];
  let after = null;
  do {
    const [status, page] = await ask(`sources?${new URLSearchParams({ limit: 250, ...(after && { after }) })}`);
    if (status !== 200) return null;
    found.push(...page.sources);
    after = page.next;
  } while (after);
  return found;
}

function fill() {
  const rows = (showsAll ? known : known.slice(0, FEW)).map(make);
  byId("sources-table").tBodies[0].replaceChildren(...rows);
  byId("sources").hidden = known.length === 0;
  byId("all-sources").hidden = rows.length === known.length;
  write(byId("all-sources"), `Show all ${count(known.length)}`);
  byId("source-names").replaceChildren(...known.map(({ Source }) => el("option", { value: Source })));
}

function make(source) {
  const [tr, cells] = row(LABELS);
  cells[0].append(source.Source);
  const last = el("time", { dateTime: source.LastReceivedAt, title: utc(source.LastReceivedAt) });
  const ago = source.SilentForS < LATELY_S ? "just now" : `${seconds(source.SilentForS)} ago`;
  last.append(when(source.LastReceivedAt), el("span", { className: "second" }, ago));
  cells[1].append(last);
  if (source.Unusual) cells[1].append(badge(`${count(source.MissedHours)} usual hours missed`, "warn"));
  cells[2].append(picture(source.Days), el("span", { className: "second" }, today(source.Days)));
  cells[3].append(...verdicts(source.Verdicts));
  cells[4].append(...source.Learnt.flatMap(learnt));
  if (!source.Learnt.length) cells[4].append("–");
  return tr;
}

const dayOf = (ms) => new Date(ms).toISOString().slice(0, 10);

const today = (days) => `${count(days.find(({ Day }) => Day === dayOf(Date.now()))?.Images ?? 0)} today`;

/** Draw a bar for each day up to today. Days are in UTC, as the server counts them. */
function picture(days) {
  const images = new Map(days.map(({ Day, Images }) => [Day, Images]));
  const ends = Array.from({ length: DAYS }, (_, i) => dayOf(Date.now() - (DAYS - 1 - i) * DAY_MS));
  const most = Math.max(1, ...ends.map((day) => images.get(day) ?? 0));
  const sent = ends.filter((day) => images.get(day));
  const best = sent.find((day) => images.get(day) === most);
  const words = best
    ? `Images on ${many(sent.length, "day", "days")} of five weeks, most on ${date(best.replaceAll("-", ""))}: ${count(most)}`
    : "No images within five weeks";
  const bars = ends.map((day, i) => {
    const height = Math.max(images.get(day) ? 2 : 0, Math.round((HEIGHT * (images.get(day) ?? 0)) / most));
    return svg("rect", { x: i * BAR, y: HEIGHT - height, width: BAR - 1, height, class: "bar" });
  });
  const ground = svg("line", { x1: 0, x2: DAYS * BAR, y1: HEIGHT + 0.5, y2: HEIGHT + 0.5, class: "ground" });
  const size = { width: DAYS * BAR, height: HEIGHT + 1 };
  return svg("svg", { ...size, class: "spark", role: "img", "aria-label": words }, svg("title", {}, words), ground, ...bars);
}

function verdicts(all) {
  const sum = (name) => all.reduce((total, one) => total + one[name], 0);
  if (!all.length) return ["–"];
  const early = sum("Contradicted");
  const first = early
    ? badge(`${count(early)} of ${many(sum("Series"), "verdict", "verdicts")} too early`, "warn")
    : `${many(sum("Series"), "verdict", "verdicts")}, none too early`;
  const each = all.map(({ Verdict, Series, Contradicted }) =>
    [`${count(Series)} ${Verdict}`, Contradicted ? ` (${count(Contradicted)} too early)` : ""].join(""),
  );
  return [first, el("span", { className: "second" }, each.join(", "))];
}

function learnt({ GatewayID, LearntFrom, WaitS }) {
  const times = Object.values(WaitS).sort((a, b) => a - b);
  if (!times.length) return [];
  const [least, most] = [seconds(times[0]), seconds(times.at(-1))];
  const each = Object.entries(WaitS).map(([phase, s]) => `${Object.hasOwn(PHASES, phase) ? PHASES[phase] : phase}: ${seconds(s)}`);
  return [
    el("span", { className: "wait" }, least === most ? least : `${least} to ${most}`),
    el("span", { className: "second" }, each.join("; ")),
    el("span", { className: "second" }, `${GatewayID}, from ${many(LearntFrom, "series", "series")}`),
  ];
}

byId("all-sources").addEventListener("click", () => {
  showsAll = true;
  fill();
});
