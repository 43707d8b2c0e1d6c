// Find what is wrong, and say how to fix it. Level "bad" needs somebody now, level "warn" soon.

import { compared, count, many, seconds } from "./format.js";

const STUCK_S = 120; // silence after which an open series is called stuck
const LATE_S = 15; // age of the oldest waiting report from which on it is a warning, …
const STUCK_REPORT_S = 60; // … and from which on it is "bad"
const SKEW_S = 2; // largest difference of clocks without a warning
const FULL = 0.8; // part of the inbox in use from which on there is a warning

/** Return the problems: { level, id, what, more, cure, act }. `act` names an action on this page, if there is one; `id` stays the same while a problem lasts, and `more` may change every second. */
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
    more: `for ${seconds(silentS)}; it had ${many(state.OpenSeries, "open series", "open series")} and ${many(state.UndeliveredReports, "waiting report", "waiting reports")}, all kept in its journal`,
    cure: "Check that its process and its machine are running; it continues where it stopped.",
    act: { kind: "dismiss", id },
  };
}

/** The gateway runs, but this server refuses its heartbeats and knows why. */
function refused({ id, silentS, refused }) {
  return {
    level: "bad",
    id: `refused ${id}`,
    what: `This server refuses gateway ${id}`,
    more: `for ${seconds(silentS)}: ${refused}. What it receives is kept in its journal`,
    cure: `Make a key with python server.py keys create ${/^[\w.-]+$/.test(id) ? id : "NAME"} --scope series:write, give it to the gateway as GATEWAY_API_KEY, and restart the gateway.`,
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
      `Gateway ${id} accepts no images`,
      state.Reason,
      "It accepts images again as soon as that is fixed; until then senders keep them. On its machine: python client.py status",
    );
  }
  if (state.DeadLetters) {
    const what = `${many(state.DeadLetters, "report", "reports")} of gateway ${id} ${state.DeadLetters === 1 ? "was" : "were"} refused for good`;
    yield about(
      "bad",
      "dead",
      what,
      state.Dead.length ? `latest answer: ${state.Dead[0].Answer}` : "",
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
      "They are tried again until they are stored. Look at the last problem, and at the server's log.",
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
      "To report them as they are, on its machine: python client.py drain",
    );
  }
  if (state.InboxInstances > FULL * state.InboxSize) {
    yield about(
      "warn",
      "inbox",
      `The inbox of gateway ${id} is nearly full`,
      `${count(state.InboxInstances)} of ${count(state.InboxSize)}`,
      "Its disk may be slow. When the inbox is full, senders are told to try again later.",
    );
  }
  if (compared(state.Version, version) === "newer") {
    yield about(
      "warn",
      "newer",
      `Gateway ${id} is newer than this server`,
      `${state.Version}, and the server ${version}`,
      "Upgrade the server: it refuses what it does not know in a newer gateway's reports.",
    );
  }
  if (Math.abs(skewS) > SKEW_S) {
    yield about(
      "warn",
      "clock",
      `The clock of gateway ${id} is off`,
      `by ${seconds(Math.abs(skewS))}`,
      "Synchronize both machines' clocks (NTP); latencies are wrong until then.",
    );
  }
}

function* ofServer({ Conflicts, Webhooks }) {
  if (Conflicts) {
    const what = `${count(Conflicts)}${Conflicts < 1000 ? "" : " or more"} ${Conflicts === 1 ? "report contradicts a stored series" : "reports contradict stored series"}`;
    yield {
      level: "warn",
      id: "conflicts",
      what,
      more: "with another patient or study; kept aside, nothing was overwritten",
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
        what: `${of} did not accept some changes`,
        more: count(Dead),
        cure: `Fix the receiver, then: python server.py webhooks replay ${Id}`,
        act: { kind: "untold", id: Id },
      };
    if (Ended)
      yield {
        level: "warn",
        id: `ended hook ${Id}`,
        what: `${of} answered that it wants no more changes`,
        more: `${count(Behind)} behind`,
        cure: `To go on: python server.py webhooks replay ${Id}. To end it: python server.py webhooks remove ${Id}`,
        act: { kind: "untold", id: Id },
      };
    else if (Attempts)
      yield {
        level: "warn",
        id: `late hook ${Id}`,
        what: `${of} fails`,
        more: `${count(Behind)} behind, ${many(Attempts, "failed attempt", "failed attempts")}`,
        cure: "It is tried again for a day. To see why: python server.py webhooks list",
      };
  }
}

/** Return the level and the one line that sums everything up. It changes only when a problem comes or goes. */
export function headline(world, wrong) {
  const bad = wrong.filter((problem) => problem.level === "bad");
  if (bad.length === 1) return ["bad", `Problem: ${bad[0].what}`];
  if (bad.length) return ["bad", `${count(bad.length)} problems`];
  if (wrong.length === 1) return ["warn", `Warning: ${wrong[0].what}`];
  if (wrong.length) return ["warn", `${count(wrong.length)} warnings`];
  const gateways = world.present().length;
  return gateways
    ? ["good", `All well: ${many(gateways, "gateway is", "gateways are")} receiving`]
    : ["none", "No gateway was heard from yet"];
}
