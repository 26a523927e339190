/** Following one run: as events, or as the text of its answer. */

import { RunFailed } from "./errors.js";
import { RUN_ENDED } from "./generated.js";

/** @typedef {import("./protocol.js").Event} Event */
/** @typedef {import("./protocol.js").Item} Item */
/** @typedef {import("./protocol.js").Run} Run */
/** @typedef {import("./subscription.js").Resync} Resync */
/** @typedef {import("./client.js").Client} Client */

/**
 * Every event of a run to the one that ended it. Where the history is no longer kept a `Resync` comes instead.
 * @param {Client} client
 * @param {string} run_id
 * @param {{signal?: AbortSignal}} options
 * @returns {AsyncGenerator<Event | Resync, void>}
 */
export async function* followRun(client, run_id, { signal }) {
  const stream = `run:${run_id}`;
  for await (const event of client.subscribe([stream], { since: { [stream]: 0 }, signal })) {
    yield event;
    if (event.type === "resync") {
      const { snapshot } = /** @type {Resync} */ (event);
      if (snapshot?.runs?.some((run) => run.run_id === run_id && RUN_ENDED.has(run.status))) return;
    } else if (event.type.startsWith("run.") && RUN_ENDED.has(event.type.slice(4))) {
      return;
    }
  }
}

/**
 * The text of an answer, piece by piece as it is produced; iteration ends when the run is over and rejects with
 * `RunFailed` where it did not complete. Leaving the iteration leaves the run going: `cancel` ends it.
 */
export class Answer {
  #client;
  #begin;
  #signal;
  /** @type {Map<string, string>} */ #said = new Map();
  /** Set once iteration (or `start`) has begun. @type {string | undefined} */
  run_id;
  /** The run once it is over. @type {Run | undefined} */
  run;
  /** Items that have ended, by id, as they came. @type {Map<string, Item>} */
  items = new Map();

  /**
   * @param {Client} client
   * @param {() => Promise<string>} begin
   * @param {AbortSignal} [signal]
   */
  constructor(client, begin, signal) {
    this.#client = client;
    this.#begin = begin;
    this.#signal = signal;
  }

  /** Start the run now. @returns {Promise<string>} its id */
  async start() {
    this.run_id ??= await this.#begin();
    return this.run_id;
  }

  /** The whole answer. Waits for the end of the run. */
  async text() {
    let text = "";
    for await (const piece of this) text += piece;
    return text;
  }

  /** End the run. */
  async cancel(reason = "") {
    if (this.run_id !== undefined) await this.#client.call("runs/cancel", { run_id: this.run_id, reason });
  }

  /** @returns {AsyncGenerator<string, void>} */
  async *[Symbol.asyncIterator]() {
    const run_id = await this.start();
    for await (const event of followRun(this.#client, run_id, { signal: this.#signal })) {
      if (event.type === "resync") {
        /** @type {Run} */
        const run = await this.#client.call("runs/get", { run_id });
        for (const item of run.items) yield* this.#level(item);
      } else {
        yield* this.#take(/** @type {Event} */ (event));
      }
    }
    this.#signal?.throwIfAborted();
    /** @type {Run} */
    const run = (this.run = await this.#client.call("runs/get", { run_id }));
    if (run.status !== "completed") throw new RunFailed(run);
  }

  /** @param {Event} event */
  *#take({ type, data }) {
    if (type === "item.delta") {
      const said = this.#said.get(data.item_id);
      if (said !== undefined) {
        this.#said.set(data.item_id, said + data.text);
        yield data.text;
      }
    } else if (type === "item.started" || type === "item.updated" || type === "item.completed") {
      if (type === "item.completed") this.items.set(data.item.item_id, data.item);
      yield* this.#level(data.item);
    }
  }

  /** What of an item's whole text has not been said yet. @param {any} item */
  *#level(item) {
    if (item.type !== "message" || (item.role ?? "assistant") !== "assistant") return;
    const said = this.#said.get(item.item_id) ?? "";
    const text = item.text ?? "";
    const more = text.startsWith(said) ? text.slice(said.length) : "";
    this.#said.set(item.item_id, said + more);
    if (more) yield more;
  }
}
