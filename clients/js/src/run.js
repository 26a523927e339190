/** One piece of work, as an agent's handler sees it: what was asked, and how to answer while working. */

import { AGENT_FAILED, CANCELLED, WitsdError } from "./errors.js";

/** @typedef {import("./protocol.js").RunsExecuteParams} ExecuteParams */
/** @typedef {import("./agent.js").Agent} Agent */

/** A text of fewer characters is sent whole when it ends; of a longer one the daemon has the deltas. */
const MAX_WHOLE = 500_000;

export class Run {
  #agent;
  #texts = /** @type {Map<"message" | "thought", {item_id: string, said: string}>} */ (new Map());
  #items = 0;
  #over = false;

  /**
   * @param {Agent} agent
   * @param {ExecuteParams} params
   * @param {AbortSignal} signal
   */
  constructor(agent, params, signal) {
    this.#agent = agent;
    /** Aborted when the run is cancelled: give it to `fetch` and to the client's calls. */
    this.signal = signal;
    this.run_id = params.run_id;
    /** The conversation this belongs to, if any. */
    this.session_id = params.session_id;
    this.input = params.input;
    /** What was asked. */
    this.text = params.input.text ?? "";
    /** Where relative paths in `text` are meant to start. */
    this.cwd = params.input.cwd;
    /** The turns before this one, where the daemon gave them. */
    this.history = params.history ?? [];
    this.settings = params.settings ?? {};
    /** False: nobody wants deltas, and `say` sends none. */
    this.stream = params.stream;
    /** RFC 3339; the daemon ends the run then. */
    this.deadline = params.deadline;
  }

  /** `[options]` of the agent's definition. */
  get options() {
    return this.#agent.options;
  }

  /** The daemon's methods, within this agent's grants. */
  get client() {
    return this.#agent.client;
  }

  /** The answer so far. */
  get said() {
    return this.#texts.get("message")?.said ?? "";
  }

  /** Add to the answer. Waits when the daemon does not keep up. @param {string} text */
  say(text) {
    return this.#add("message", text);
  }

  /** Add to the reasoning that is shown apart from the answer. @param {string} text */
  think(text) {
    return this.#add("thought", text);
  }

  /**
   * Insert or replace an item, and return its id: give it back to replace the item later.
   * @param {string} type
   * @param {Record<string, any>} fields  those of the type, and `item_id` and `status` where they matter
   */
  async item(type, { item_id = this.#newId(), status = "completed", ...fields }) {
    this.#check();
    await this.#agent.tell("notifications/item", { run_id: this.run_id, item: { item_id, type, status, ...fields } });
    return item_id;
  }

  /**
   * Append to the `text` of an item made with `item`.
   * @param {string} item_id
   * @param {string} text
   */
  async delta(item_id, text) {
    this.#check();
    await this.#agent.tell("notifications/delta", { run_id: this.run_id, item_id, text });
  }

  /**
   * Keep a line with the run.
   * @param {"debug" | "info" | "warning" | "error"} level
   * @param {string} text
   */
  async log(level, text) {
    await this.item("log", { level, text });
  }

  /**
   * Call a tool; the call shows in the run. Resolves to its value: what is structured, else its text.
   * @param {string} name
   * @param {Record<string, any>} [args]
   */
  async tool(name, args = {}) {
    const result = await this.client.call("tools/call", { name, arguments: args, run_id: this.run_id }, { signal: this.signal });
    const text = result.content.map((/** @type {any} */ part) => part.text ?? "").join("\n");
    if (result.is_error) throw new WitsdError(AGENT_FAILED, `${name}: ${text}`, { reason: text, tool: name });
    const value = result.structured_content;
    if (value === undefined || value === null) return text;
    return Object.keys(value).join() === "result" ? value.result : value;
  }

  /**
   * Ask a person, and wait for the response. `schema` is a JSON Schema for it.
   * @param {string} message
   * @param {{schema?: object, timeout_s?: number}} [options]
   */
  async askUser(message, options = {}) {
    const params = { run_id: this.run_id, message, ...options };
    return (await this.client.call("inputs/request", params, { signal: this.signal })).response;
  }

  // ---- for the agent ------------------------------------------------------------------------------

  /** End the run and return its output: what the handler returned, else what it said. @param {any} [returned] */
  complete(returned) {
    if (typeof returned === "string" && returned && !this.said) {
      // An answer that was returned and not said is an answer all the same.
      this.#texts.set("message", { item_id: this.#newId(), said: returned });
    }
    const output = returned ?? this.said;
    this.#close("completed");
    return output;
  }

  /** End the run as failed or cancelled; what the daemon is told. @param {unknown} error */
  fail(error) {
    this.#close(this.signal.aborted ? "cancelled" : "failed");
    if (this.signal.aborted) return new WitsdError(CANCELLED, "cancelled as asked");
    if (error instanceof WitsdError) return error;
    console.error(error);
    const reason = String(error).slice(0, 2000);
    return new WitsdError(AGENT_FAILED, reason, { run_id: this.run_id, reason });
  }

  #newId() {
    this.#items += 1;
    return `${this.run_id}.${this.#items}`;
  }

  #check() {
    if (this.signal.aborted) throw new WitsdError(CANCELLED, `run ${this.run_id} was cancelled`);
    if (this.#over) throw new Error(`run ${this.run_id} is over: nothing more can be said in it`);
  }

  /**
   * @param {"message" | "thought"} type
   * @param {string} text
   */
  async #add(type, text) {
    if (typeof text !== "string") throw new TypeError(`say and think take text, not ${typeof text}`);
    this.#check();
    let known = this.#texts.get(type);
    if (!known) {
      known = { item_id: this.#newId(), said: "" };
      this.#texts.set(type, known);
      await this.#agent.tell("notifications/item", { run_id: this.run_id, item: this.#textItem(type, "in_progress", "") });
    }
    if (!text) return;
    known.said += text;
    if (this.stream) await this.delta(known.item_id, text);
  }

  /** @param {"completed" | "failed" | "cancelled"} status */
  #close(status) {
    if (this.#over) return;
    this.#over = true;
    for (const [type, { said }] of this.#texts) {
      if (said.length < MAX_WHOLE) this.#agent.tell("notifications/item", { run_id: this.run_id, item: this.#textItem(type, status, said) });
    }
  }

  /**
   * @param {"message" | "thought"} type
   * @param {string} status
   * @param {string} text
   */
  #textItem(type, status, text) {
    const item = { item_id: this.#texts.get(type)?.item_id, type, status, text };
    return type === "message" ? { ...item, role: "assistant" } : item;
  }
}
