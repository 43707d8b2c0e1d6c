// The connection to the server: requests, and the stream of events, which is opened again whenever it breaks.

const STALE_MS = 5000; // silence after which the stream counts as broken; an event comes every second
const LONGEST_MS = 15000; // longest pause before the next attempt
const ANSWER_MS = 30000; // longest wait for an answer: a connection that broke unseen, as in a sleeping laptop, brings none

/** Send a request; return [status, JSON], or [0, null] if the server does not answer. What only reads is sent twice. */
export async function ask(path, options = {}) {
  const answer = await send(path, options);
  return answer[0] || options.method ? answer : send(path, options); // the network may have changed just then
}

async function send(path, { signal, within = ANSWER_MS, ...options }) {
  const ends = new AbortController();
  const timer = setTimeout(() => ends.abort(), within);
  signal?.addEventListener("abort", () => ends.abort());
  try {
    const response = await fetch(path, { cache: "no-store", ...options, signal: ends.signal });
    const json = response.status !== 204 && response.headers.get("Content-Type")?.startsWith("application/json");
    return [response.status, json ? await response.json() : null];
  } catch (error) {
    if (signal?.aborted) throw error;
    return [0, null];
  } finally {
    clearTimeout(timer);
  }
}

/** Follow the overview until stop() is called. `on` has the callbacks known(session), refused(why), frame(frame), lost(why). */
export function follow(on) {
  let source = null;
  let timer = 0;
  let failures = 0;
  let stopped = false;

  function again(why) {
    source?.close();
    clearTimeout(timer);
    failures += 1;
    if (failures > 1) on.lost(why); // streams end every ten minutes, and the next one begins at once
    const wait = failures > 1 ? Math.min(LONGEST_MS, 500 * 2 ** failures) * (0.5 + Math.random() / 2) : 0;
    timer = setTimeout(connect, wait);
  }

  function watch() {
    clearTimeout(timer);
    timer = setTimeout(again, STALE_MS, "the server sends nothing");
  }

  async function connect() {
    const [status, answer] = await ask("session", { within: 2 * STALE_MS });
    if (stopped) return undefined;
    if (status === 401 || status === 403) return on.refused(answer?.detail ?? "");
    if (status !== 200) return again(answer?.detail ?? "the server does not answer");
    if (!answer.Scopes.includes("series:read")) return on.refused("this key lacks the scope series:read");
    on.known(answer);
    source = new EventSource("overview/stream");
    source.addEventListener("overview", (event) => {
      failures = 0;
      watch();
      on.frame(JSON.parse(event.data));
    });
    source.addEventListener("error", () => again("the connection broke"));
    return watch();
  }

  connect();
  return {
    stop() {
      stopped = true;
      clearTimeout(timer);
      source?.close();
    },
  };
}
