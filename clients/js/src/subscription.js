/** A subscription that outlives its connection: no gap, no duplicate, and told when it must start over. */

import { ConnectionLost, RESYNC_REQUIRED, WitsdError } from "./errors.js";
import { Cursor } from "./cursor.js";

/** @typedef {import("./protocol.js").Event} Event */
/** @typedef {import("./cursor.js").Since} Since */
/**
 * State instead of history: replace what you know by `snapshot`; the events that follow come after it. `reason` is
 * `snapshot` where one was asked for, else it says why the history could not go on.
 * @typedef {object} Resync
 * @property {"resync"} type
 * @property {string} reason
 * @property {number} pos
 * @property {string} epoch
 * @property {Record<string, number>} cursors
 * @property {import("./protocol.js").Snapshot | null} snapshot
 */
/**
 * @typedef {object} SubscribeOptions
 * @property {Since} [since]  `{pos}` or stream -> seq; absent: from now on
 * @property {string} [epoch]  with a cursor that was kept from an earlier process
 * @property {readonly string[]} [types]
 * @property {boolean} [snapshot]  the first thing yielded is a `Resync` with the present state
 * @property {AbortSignal} [signal]  ends the iteration
 */

/** Events held for a reader that is busy. Beyond it the rest is fetched again from the journal. */
export const MAX_QUEUED = 4096;

/** Yields events and, where history could not go on, `Resync`. Made by `client.subscribe`; one reader. */
export class Subscription {
  #client;
  #streams;
  #types;
  #cursor;
  #wantSnapshot;
  /** @type {(Event | Resync)[]} */ #queue = [];
  #head = 0;
  /** @type {string | null} */ #wireId = null;
  /** @type {string | null} */ #stale = null;
  #live = false;
  #closed = false;
  #gaps = 0;
  /** @type {string | null} */ #resyncReason = null;
  /** @type {() => void} */ #wake = () => {};

  /**
   * @param {import("./client.js").Client} client
   * @param {readonly string[]} streams
   * @param {SubscribeOptions} options
   */
  constructor(client, streams, { since, epoch, types, snapshot = false, signal }) {
    this.#client = client;
    this.#streams = streams;
    this.#types = types;
    this.#wantSnapshot = snapshot;
    this.#cursor = new Cursor(streams, since ?? null, { epoch: epoch ?? null, contiguous: types === undefined });
    if (signal?.aborted) this.#closed = true;
    signal?.addEventListener("abort", () => this.close(), { once: true });
  }

  /** Which database the events are from. To go on in another process, keep it with an event's `pos`. */
  get epoch() {
    return this.#cursor.epoch;
  }

  [Symbol.asyncIterator]() {
    return this;
  }

  /** @returns {Promise<IteratorResult<Event | Resync, undefined>>} */
  async next() {
    for (;;) {
      if (this.#head < this.#queue.length) {
        const value = this.#queue[this.#head++];
        if (this.#head === this.#queue.length) {
          this.#queue = [];
          this.#head = 0;
        }
        return { value, done: false };
      }
      if (this.#closed) return { value: undefined, done: true };
      if (!this.#live) {
        await this.start();
        continue;
      }
      await new Promise((resolve) => (this.#wake = () => resolve(null)));
    }
  }

  /** Leaving a `for await` ends the subscription. @returns {Promise<IteratorResult<Event | Resync, undefined>>} */
  async return() {
    this.close();
    return { value: undefined, done: true };
  }

  /**
   * Subscribe now and not at the first `for await`: what happens from here on will be yielded. Waits for a connection
   * as long as it takes; rejects with what the daemon answers.
   */
  async start() {
    while (!this.#live && !this.#closed) {
      const stale = this.#stale;
      this.#stale = null;
      if (stale !== null) await this.#client.unsubscribe(stale);
      // The same hole twice: the journal itself has it, so only the present state helps.
      if (this.#gaps > 1) this.#startOver("events are missing from the journal");
      try {
        try {
          await this.#subscribe();
        } catch (error) {
          if (!(error instanceof WitsdError && error.code === RESYNC_REQUIRED)) throw error;
          this.#startOver(error.message);
          await this.#subscribe();
        }
        return;
      } catch (error) {
        if (!(error instanceof ConnectionLost)) throw error;
        if (this.#closed) return;
        await this.#client.waitConnected();
      }
    }
  }

  /** End the subscription; the daemon is told. */
  close() {
    this.#closed = true;
    this.#queue = [];
    this.#head = 0;
    for (const id of [this.#wireId, this.#stale]) if (id !== null) this.#client.dropFeed(id);
    this.#wireId = this.#stale = null;
    this.#live = false;
    this.#wake();
  }

  // ---- for the client -----------------------------------------------------------------------------

  /**
   * Take an event off the wire.
   * @param {Event} event
   */
  put(event) {
    if (this.#queue.length - this.#head >= MAX_QUEUED) return this.#interrupt();
    const verdict = this.#cursor.judge(event);
    if (verdict === "next") {
      this.#gaps = 0;
      this.#append(event);
    } else if (verdict === "gap") {
      this.#gaps += 1;
      this.#interrupt();
    }
  }

  /**
   * The daemon has ended this subscription; the reader will begin a new one from its cursor.
   * @param {number} pos
   */
  lagged(pos) {
    this.#cursor.lagged(pos);
    this.#wireId = null;
    this.#live = false;
    this.#wake();
  }

  /** The connection is gone, and the wire's subscription with it. */
  disconnected() {
    this.#wireId = this.#stale = null;
    this.#live = false;
    this.#wake();
  }

  // ---- within -------------------------------------------------------------------------------------

  /** @param {Event | Resync} item */
  #append(item) {
    this.#queue.push(item);
    this.#wake();
  }

  /** Stop listening; the reader goes on from the cursor when it has used up what is here. */
  #interrupt() {
    this.#stale = this.#wireId;
    this.#wireId = null;
    this.#live = false;
    if (this.#stale !== null) this.#client.forgetFeed(this.#stale);
    this.#wake();
  }

  /** @param {string} reason */
  #startOver(reason) {
    this.#gaps = 0;
    this.#cursor.forget();
    this.#resyncReason = reason;
  }

  async #subscribe() {
    const since = this.#cursor.since();
    // Kept until the daemon has answered: a drop in between must not turn a resync into silence.
    const reason = this.#resyncReason;
    const snapshot = this.#wantSnapshot || reason !== null;
    /** @type {import("./protocol.js").EventsSubscribeParams} */
    const params = { streams: [...this.#streams] };
    if (this.#types) params.types = [...this.#types];
    if (since !== null) {
      params.since = since;
      if (this.#cursor.epoch !== null) params.epoch = this.#cursor.epoch;
    }
    if (snapshot) params.snapshot = true;
    await this.#client.subscribeCall(params, (result) => {
      this.#cursor.begin(result, since);
      if (this.#closed) return this.#client.dropFeed(result.subscription_id);
      this.#wireId = result.subscription_id;
      this.#live = true;
      this.#client.addFeed(result.subscription_id, this);
      const kept = result.resync ? "that part of the journal is no longer kept" : null;
      const why = reason ?? kept ?? (snapshot ? "snapshot" : null);
      if (why !== null) {
        const { pos, epoch, cursors } = result;
        this.#append({ type: "resync", reason: why, pos, epoch, cursors, snapshot: result.snapshot ?? null });
      }
      this.#wantSnapshot = false;
      this.#resyncReason = null;
    });
  }
}
