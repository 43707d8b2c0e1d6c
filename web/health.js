// What is wrong, in words, and its cure. Two levels: "bad" wants somebody now, "warn" soon.

import { compared, count, many, seconds } from "./format.js";

const STUCK_S = 120; // an open series without an image
const LATE_S = 15; // a report that waits for the server, …
const STUCK_REPORT_S = 60; // … and when somebody has to look
const SKEW_S = 2;
const FULL = 0.8; // of the inbox

/** What is wrong: { level, id, what, more, cure, act }, `act` is how it is cured here; `id` stays the same while it lasts, and `more` may change by the second. */
export function problems(world) {
  const found = world.present().flatMap((gateway) => (gateway.silent ? [gateway.refused ? refused(gateway) : silent(gateway)] : [...ofGateway(gateway, world)]));
  found.push(...ofServer(world.totals));
  return found.sort((a, b) => (a.level === b.level ? 0 : a.level === "bad" ? -1 : 1));
}

function silent({ id, silentS, state }) {
  return {
    level: "bad",
    id: `silent ${id}`,
    what: `Gateway ${id} is silent`,
    more: `for ${seconds(silentS)}; it had ${many(state.OpenSeries, "open series", "open series")} and ${many(state.UndeliveredReports, "report", "reports")} waiting, which its journal keeps`,
    cure: "See whether its process and its machine run; it goes on where it was.",
    act: { kind: "dismiss", id },
  };
}

/** It runs, and asks in vain: this server heard it, and knows why. */
function refused({ id, silentS, refused }) {
  return {
    level: "bad",
    id: `refused ${id}`,
    what: `This server refuses gateway ${id}`,
    more: `for ${seconds(silentS)}: ${refused}. What it receives waits in its journal`,
    cure: `python server.py keys create ${/^[\w.-]+$/.test(id) ? id : "NAME"} --scope series:write makes a key: give it to the gateway as GATEWAY_API_KEY and start it again.`,
    act: { kind: "dismiss", id },
  };
}

function* ofGateway(gateway, { version }) {
  const { id, state, skewS } = gateway;
  const about = (level, kind, what, more, cure, act) => ({ level, id: `${kind} ${id}`, what, more, cure, act });
  if (state.Reason) {
    yield about(
      "bad",
      "full",
      `Gateway ${id} receives nothing`,
      state.Reason,
      "It goes on by itself once that is cured; senders keep their images. On its machine: python client.py status",
    );
  }
  if (state.DeadLetters) {
    const what = `${many(state.DeadLetters, "report", "reports")} of gateway ${id} refused for good`;
    yield about(
      "bad",
      "dead",
      what,
      state.Dead.length ? `last: ${state.Dead[0].Answer}` : "",
      "On its machine: python client.py dead-letters list, then replay or discard",
      { kind: "letters", id },
    );
  }
  if (state.OldestUndeliveredS > LATE_S) {
    const level = state.OldestUndeliveredS > STUCK_REPORT_S ? "bad" : "warn";
    const more = `${count(state.UndeliveredReports)}, the oldest for ${seconds(state.OldestUndeliveredS)}; last problem: ${state.LastProblem ?? "none"}`;
    yield about(
      level,
      "late",
      `Reports of gateway ${id} wait for the server`,
      more,
      "They are tried again until they are stored. See the problem named, and the server's log.",
    );
  }
  const stuck = [...gateway.arriving.values()].filter(
    (s) => Date.parse(state.At) - Date.parse(s.LastReceivedAt) > 1000 * STUCK_S,
  );
  if (stuck.length) {
    const what = `${many(stuck.length, "series is", "series are")} stuck at gateway ${id}`;
    yield about(
      "bad",
      "stuck",
      what,
      `no image for more than ${seconds(STUCK_S)}, and not reported`,
      "On its machine: python client.py drain reports them as they are",
    );
  }
  if (state.InboxInstances > FULL * state.InboxSize) {
    yield about(
      "warn",
      "inbox",
      `The inbox of gateway ${id} is nearly full`,
      `${count(state.InboxInstances)} of ${count(state.InboxSize)}`,
      "Its disk may be slow; beyond the size senders are told to try later.",
    );
  }
  if (compared(state.Version, version) === "newer") {
    yield about(
      "warn",
      "newer",
      `Gateway ${id} is newer than this server`,
      `${state.Version}, and the server ${version}`,
      "Upgrade the server: it refuses what it does not know of a newer gateway's reports.",
    );
  }
  if (Math.abs(skewS) > SKEW_S) {
    yield about(
      "warn",
      "clock",
      `The clock of gateway ${id} is off`,
      `by ${seconds(Math.abs(skewS))}`,
      "Let its machine and the server's take the time from one place; latencies are wrong until then.",
    );
  }
}

function* ofServer({ Conflicts, Webhooks }) {
  if (Conflicts) {
    const what = `${count(Conflicts)}${Conflicts < 1000 ? "" : " or more"} ${Conflicts === 1 ? "report contradicts" : "reports contradict"} the series stored`;
    yield {
      level: "warn",
      id: "conflicts",
      what,
      more: "another patient or study; kept aside, nothing was overwritten",
      cure: "GET /conflicts shows them, POST /conflicts/{digest} settles one",
      act: { kind: "conflicts" },
    };
  }
  for (const { Id, Host, Behind, Attempts, Ended, Dead } of Webhooks) {
    const of = `Webhook ${Id} (${Host})`;
    if (Dead)
      yield {
        level: "bad",
        id: `dead hook ${Id}`,
        what: `${of} was not told some changes`,
        more: count(Dead),
        cure: `python server.py webhooks replay ${Id}`,
        act: { kind: "untold", id: Id },
      };
    if (Ended)
      yield {
        level: "warn",
        id: `ended hook ${Id}`,
        what: `${of} wants to be told nothing more`,
        more: `${count(Behind)} behind`,
        cure: `python server.py webhooks replay ${Id} goes on, webhooks remove ${Id} ends it`,
        act: { kind: "untold", id: Id },
      };
    else if (Attempts)
      yield {
        level: "warn",
        id: `late hook ${Id}`,
        what: `${of} does not answer as it should`,
        more: `${count(Behind)} behind, ${many(Attempts, "try", "tries")}`,
        cure: "It is tried again for a day: python server.py webhooks list",
      };
  }
}

/** One line, which changes only when something does. */
export function headline(world, wrong) {
  const bad = wrong.filter((problem) => problem.level === "bad");
  if (bad.length === 1) return ["bad", `Wrong: ${bad[0].what}`];
  if (bad.length) return ["bad", `${count(bad.length)} things are wrong`];
  if (wrong.length === 1) return ["warn", `Look at this: ${wrong[0].what}`];
  if (wrong.length) return ["warn", `${count(wrong.length)} things to look at`];
  const gateways = world.present().length;
  return gateways
    ? ["good", `All well: ${many(gateways, "gateway is", "gateways are")} receiving`]
    : ["none", "No gateway has said anything yet"];
}
