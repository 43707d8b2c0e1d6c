// Numbers, times and names as a person reads them.

const clock = new Intl.DateTimeFormat(undefined, {
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
  hourCycle: "h23",
});
const fine = new Intl.DateTimeFormat(undefined, {
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
  hourCycle: "h23",
  fractionalSecondDigits: 2,
});
const day = new Intl.DateTimeFormat(undefined, { year: "numeric", month: "short", day: "numeric" });
const plain = new Intl.NumberFormat();
const UNITS = ["B", "KB", "MB", "GB", "TB"];

/** What each verdict means; shown beside it. */
export const VERDICTS = {
  verified: "the PACS has exactly these images",
  declared: "a person said that it is complete",
  expected: "as many images as a tag says",
  idle: "quiet, not proven complete",
  capped: "open for too long; images still came",
  drained: "reported early, on request or at a stop",
  none: "no verdict yet; more images may come",
};

/** What a study's verdict means, where nothing else is known of it. */
export const STUDY_VERDICTS = {
  verified: "the PACS has exactly these series and images",
  declared: "a person said that it is complete",
  expected: "all required series are here",
  idle: "quiet, not proven complete",
  capped: "open for too long",
  drained: "reported early, on request or at a stop",
};

export const count = (n) => plain.format(n);

export const many = (n, one, several) => `${count(n)} ${n === 1 ? one : several}`;

/** Format a length of time in its two largest units. */
export function seconds(s) {
  if (s < 10) return `${Math.max(0, s).toFixed(1)} s`;
  if (s < 90) return `${Math.round(s)} s`;
  const minutes = Math.round(s / 60);
  if (minutes < 90) return `${minutes} min`;
  return minutes < 48 * 60 ? `${Math.floor(minutes / 60)} h ${minutes % 60} min` : `${Math.floor(minutes / 1440)} days`;
}

/** Format a length of time as short as the tick of an axis: 0.1 s, 10 s, 1 min, 6 h. */
export function duration(s) {
  if (s < 60) return `${s} s`;
  return s < 3600 ? `${s / 60} min` : `${s / 3600} h`;
}

export function bytes(n) {
  const power = Math.min(UNITS.length - 1, Math.floor(Math.log10(Math.max(1, n)) / 3));
  return `${(n / 1000 ** power).toFixed(power ? 1 : 0)} ${UNITS[power]}`;
}

/** Format a local time, with the day if that is not today. */
export function when(iso, format = clock) {
  const at = new Date(iso);
  const today = new Date().toDateString() === at.toDateString();
  return today ? format.format(at) : `${day.format(at)}, ${format.format(at)}`;
}

/** Format a local time to a hundredth of a second. */
export const precisely = (iso) => when(iso, fine);

/** Format a DICOM date (DA); return any other text unchanged. */
export function date(da) {
  const [, y, m, d] = /^(\d{4})(\d\d)(\d\d)$/.exec(da) ?? [];
  const at = new Date(`${y}-${m}-${d}T12:00:00`);
  return Number.isNaN(at.getTime()) ? da : day.format(at);
}

export const utc = (iso) => `${new Date(iso).toISOString().replace("T", " ").slice(0, 19)} UTC`;

/** Format a person's name: `Doe^Jane^^^` is `Doe, Jane`. Groups are separated by = (PS3.5 §6.2.1). */
export function patient(name) {
  if (!name) return "no name";
  const groups = name.split("=").map((group) => {
    const [family, ...others] = group.split("^");
    return [family, others.filter(Boolean).join(" ")].filter(Boolean).join(", ");
  });
  return groups.join("=");
}

/** Format a number of images, and how many are expected if that is known; a tag may say too few. */
export function images(n, expected) {
  if (!expected) return count(n);
  return n > expected ? `${count(n)}, not ${count(expected)}` : `${count(n)} of ${count(expected)}`;
}

/** Compare two versions: return "older", "newer" or "same". Gateways before 0.2 send none. */
export function compared(theirs, ours) {
  const numbers = (said) => (String(said ?? "").match(/[0-9]+/g) ?? []).map(Number);
  const [a, b] = [numbers(theirs), numbers(ours)];
  for (let i = 0; i < Math.max(a.length, b.length); i += 1) {
    if ((a[i] ?? -1) !== (b[i] ?? -1)) return (a[i] ?? -1) < (b[i] ?? -1) ? "older" : "newer";
  }
  return "same";
}

/** Return a quantile: the number that `part` (0 to 1) of all numbers do not exceed. */
export function quantile(numbers, part) {
  const sorted = [...numbers].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(part * sorted.length))];
}
