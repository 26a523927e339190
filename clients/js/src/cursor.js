/**
 * Where a subscription stands, and how it goes on from there: pure, so that it can be tested to death.
 *
 * Several streams by name are replayed one after the other, out of the order of `pos`. So until the first event
 * beyond the position the subscription began at, a resume must start where the last one did, and what comes twice is
 * dropped by its `seq`. From then on, and for any other subscription from the start, `pos` alone leads back.
 */

/** @typedef {import("./protocol.js").Event} Event */
/** @typedef {import("./protocol.js").EventsSubscribeResult} SubscribeResult */
/** @typedef {Record<string, number>} Since  stream -> seq, or `{pos}` */
/** @typedef {"next" | "duplicate" | "gap"} Verdict */

/** Streams whose last seq is remembered. The oldest goes first; `pos` still tells what came twice. */
export const MAX_STREAMS = 10_000;

/** @param {string} pattern */
export const isExact = (pattern) => !/[*?[]/.test(pattern);

/** The position of one subscription, across as many connections as it takes. */
export class Cursor {
  /** @type {Since | null} */ #since;
  #startPos = 0;
  /** @type {number | null} */ #pos = null;
  /** Insertion order is age. @type {Map<string, number>} */ #last = new Map();
  #began = false;
  #bySeq;
  #ordered;
  #contiguous;
  #maxStreams;

  /**
   * @param {readonly string[]} streams
   * @param {Since | null} since
   * @param {{epoch?: string | null, contiguous?: boolean, maxStreams?: number}} [options]  `contiguous` is false where
   *   a filter by type leaves holes in every stream
   */
  constructor(streams, since, { epoch = null, contiguous = true, maxStreams = MAX_STREAMS } = {}) {
    const exact = streams.every(isExact);
    const logs = streams.some((stream) => stream.startsWith("log:"));
    if (logs && !exact) throw new TypeError("a log is followed by its name, and not together with patterns");
    // Log lines have no position: such a subscription goes on from its seqs, whatever else is in it.
    this.#bySeq = logs;
    this.#ordered = !exact || streams.length === 1;
    this.#contiguous = contiguous;
    this.#maxStreams = maxStreams;
    this.#since = since === null ? null : { ...since };
    /** Which database the events are from. @type {string | null} */
    this.epoch = epoch;
    if (since !== null && !("pos" in since)) this.#last = new Map(Object.entries(since));
  }

  /** The position of the last event, once the replay is behind. */
  get pos() {
    return this.#pos;
  }

  /** Stream -> the last seq applied. @returns {Since} */
  get last() {
    return Object.fromEntries(this.#last);
  }

  /** The `since` with which to subscribe (again); null: from now on. @returns {Since | null} */
  since() {
    if (!this.#began) return this.#since;
    if (this.#bySeq) return { ...this.#since, ...this.last };
    if (this.#pos !== null) return { pos: this.#pos };
    if (this.#since === null) return { pos: this.#startPos };
    if ("pos" in this.#since) return this.#since;
    return Object.fromEntries(
      Object.entries(this.#since).map(([stream, seq]) => [stream, this.#last.get(stream) ?? seq]),
    );
  }

  /**
   * Take in the answer to a subscription made with `since`.
   * @param {SubscribeResult} result
   * @param {Since | null} since
   */
  begin(result, since) {
    this.#began = true;
    this.#startPos = result.pos;
    this.epoch = result.epoch;
    this.#pos = null;
    if (since === null || result.resync) {
      this.#since = null;
      this.#last = new Map(Object.entries(result.cursors));
      return;
    }
    this.#since = { ...since };
    if (!("pos" in since)) {
      // Streams that were not asked for from a seq begin where they end now.
      this.#last = new Map(Object.entries({ ...result.cursors, ...this.last, ...since }));
    } else if (this.#ordered) {
      this.#startPos = this.#pos = since.pos;
    }
  }

  /**
   * Say what `event` is, and step over it when it is the next one.
   * @param {Event} event
   * @returns {Verdict}
   */
  judge(event) {
    const { stream, seq, pos } = event;
    if (seq === undefined) return "next"; // of the moment: it is not counted
    const last = this.#last.get(stream);
    if (last !== undefined) {
      if (seq <= last) return "duplicate";
      if (this.#contiguous && (event.first_seq ?? seq) > last + 1) return "gap";
    }
    if (pos !== undefined) {
      if (last === undefined && this.#pos !== null && pos <= this.#pos) return "duplicate";
      if (pos > this.#startPos) this.#pos = Math.max(this.#pos ?? 0, pos);
    }
    if (last !== undefined) this.#last.delete(stream); // the latest stands last
    else if (this.#last.size >= this.#maxStreams && !this.#bySeq) {
      for (const oldest of this.#last.keys()) {
        this.#last.delete(oldest);
        break;
      }
    }
    this.#last.set(stream, seq);
    return "next";
  }

  /**
   * The daemon has sent everything up to `pos` and then given up on this subscription.
   * @param {number} pos
   */
  lagged(pos) {
    if (pos > this.#startPos && !this.#bySeq) this.#pos = Math.max(this.#pos ?? 0, pos);
  }

  /** Start over from now: the next `since` is null. */
  forget() {
    this.#since = null;
    this.#pos = null;
    this.#began = false;
    this.epoch = null;
    this.#last.clear();
  }
}
