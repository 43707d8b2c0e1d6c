// Everything that the page knows, added up from the frames of the stream.

const SLOT_S = 5; // seconds of each slot in GatewayState.Received
const SLOTS = 120; // slots in the chart: ten minutes
const LATENCIES = 200; // latencies that are kept for the chart and the figures
const REMEMBERED = 1000; // series that are remembered, to know which revisions brought images
const SILENT_S = 15; // time without a heartbeat after which a gateway is silent

export class World {
  constructor() {
    this.forget();
  }

  forget() {
    this.gateways = new Map(); // id: { id, state, seenAt, silentS, arriving: Map of Key to series }
    this.slots = new Map(); // number of the slot: images
    this.latencies = []; // { at, s }, the oldest first
    this.lastImages = new Map(); // UID: LastReceivedAt
    this.version = ""; // the server's
    this.totals = { Series: 0, Conflicts: 0, Webhooks: [] };
    this.refused = new Map(); // id of a gateway: why its heartbeats are refused
    this.storedAt = null;
    this.now = 0; // the server's, in ms
  }

  take(frame) {
    if (frame.Full) this.forget();
    this.now = Date.parse(frame.At);
    this.totals = frame.Totals;
    this.refused = new Map(Object.entries(frame.Refused ?? {}));
    this.version = frame.Version;
    for (const id of frame.Forgotten ?? []) this.gateways.delete(id);
    for (const [id, news] of Object.entries(frame.Gateways)) this.#hear(id, news);
    for (const [id, silentS] of Object.entries(frame.Silent)) {
      if (this.gateways.has(id)) this.gateways.get(id).silentS = silentS;
    }
    for (const series of [...frame.Stored].reverse()) this.#store(series);
    this.latencies.splice(0, this.latencies.length - LATENCIES);
    this.#replace();
  }

  #hear(id, { SeenAt, State, Arriving, Gone }) {
    const known = this.gateways.get(id);
    const gateway = known ?? { id, arriving: new Map(), silentS: 0 };
    this.#countImages(known?.state, State, SeenAt);
    gateway.state = State;
    gateway.seenAt = SeenAt;
    gateway.skewS = (Date.parse(State.At) - Date.parse(SeenAt)) / 1000;
    for (const key of Gone) gateway.arriving.delete(key);
    for (const series of Arriving) gateway.arriving.set(series.Key, series);
    this.gateways.set(id, gateway);
  }

  /** Add to the chart's slots: at first the slots that the gateway sends, later the difference of its counters. Slots of gateways begin at different times, so they cannot simply be added. */
  #countImages(before, state, seenAt) {
    const slot = Math.floor(Date.parse(seenAt) / 1000 / SLOT_S); // by the clock that the chart has
    const add = (at, n) => this.slots.set(at, (this.slots.get(at) ?? 0) + n);
    if (before) {
      add(slot, Math.max(0, state.Instances - (before.StartedAt === state.StartedAt ? before.Instances : 0)));
    } else {
      state.Received.forEach((n, i) => add(slot - state.Received.length + 1 + i, n));
    }
  }

  #store(series) {
    this.storedAt = series.UpdatedAt;
    if (series.LastReceivedAt === null || !this.#broughtImages(series)) return;
    const at = Date.parse(series.UpdatedAt);
    this.latencies.push({ at: at / 1000, s: Math.max(0, (at - Date.parse(series.LastReceivedAt)) / 1000) });
  }

  /** Tell if a stored revision brought images, and did not only change a verdict or a patient. */
  #broughtImages({ SeriesInstanceUID, Revision, LastReceivedAt }) {
    const before = this.lastImages.get(SeriesInstanceUID);
    this.lastImages.delete(SeriesInstanceUID);
    this.lastImages.set(SeriesInstanceUID, LastReceivedAt);
    if (this.lastImages.size > REMEMBERED) this.lastImages.delete(this.lastImages.keys().next().value);
    return Revision === 1 || (before !== undefined && before !== LastReceivedAt);
  }

  /** Find gateways that have another name since they were restarted, so that the old name is no problem.
   *
   * Such a gateway has the same journal as before. If it does not report its journal, host and address must be the same,
   * and it replaces only one other.
   */
  #replace() {
    const host = (gateway) => gateway.id.replace(/-[0-9a-f]{12}$/, "");
    const sameHost = (a, b) => host(a) === host(b) && a.state.Address === b.state.Address;
    const sameJournal = (a, b) => a.state.Journal && a.state.Journal === b.state.Journal;
    const all = [...this.gateways.values()].sort((a, b) => a.seenAt.localeCompare(b.seenAt));
    const heard = all.filter((gateway) => gateway.silentS <= SILENT_S);
    const free = new Set(heard);
    for (const gateway of all) {
      gateway.silent = gateway.silentS > SILENT_S && !gateway.state.Stopped;
      const began = (other) => Date.parse(other.state.StartedAt) > Date.parse(gateway.state.At);
      const renamed = gateway.silent && heard.some((other) => sameJournal(other, gateway) && began(other));
      const heir = gateway.silent && !renamed && [...free].find((other) => sameHost(other, gateway) && began(other));
      free.delete(heir);
      gateway.over = gateway.state.Stopped || renamed || Boolean(heir);
      gateway.silent &&= !gateway.over;
      gateway.refused = gateway.silent ? this.refused.get(gateway.id) : undefined;
    }
  }

  /** Return the gateways that are not over, in order of their names. */
  present() {
    return [...this.gateways.values()].filter((g) => !g.over).sort((a, b) => a.id.localeCompare(b.id));
  }

  /** Return the times (in seconds) and the images a second of the last ten minutes. */
  throughput() {
    const last = Math.floor(this.now / 1000 / SLOT_S);
    const slots = Array.from({ length: SLOTS }, (_, i) => last - SLOTS + 1 + i);
    for (const slot of this.slots.keys()) if (slot <= last - SLOTS) this.slots.delete(slot);
    return [slots.map((slot) => slot * SLOT_S), slots.map((slot) => (this.slots.get(slot) ?? 0) / SLOT_S)];
  }

  /** Return the images a second over the last whole slot and the current one. */
  rate() {
    const last = Math.floor(this.now / 1000 / SLOT_S);
    const images = (this.slots.get(last) ?? 0) + (this.slots.get(last - 1) ?? 0);
    return images / (this.now / 1000 - (last - 1) * SLOT_S);
  }
}
