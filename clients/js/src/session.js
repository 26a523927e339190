/** A conversation as one lasting function: fed a message for each run, alive between them. */

import { CANCELLED, INVALID_STATE, OVERLOADED, WitsdError } from "./errors.js";
import { Run } from "./run.js";

/** Messages one session holds for a handler that is busy; the next is answered `overloaded`. */
const MAX_WAITING = 64;
/** Turns kept to rebuild a conversation whose handler has ended. */
const MAX_TURNS = 1000;

/** One message, and the run that answers it: complete at `reply`, or when the handler comes back for the next one. */
export class Message extends Run {
  /** @type {(output: any) => void} */ #resolve = () => {};
  /** @type {(error: Error) => void} */ #reject = () => {};
  #settled = false;

  /**
   * @param {import("./agent.js").Agent} agent
   * @param {import("./protocol.js").RunsExecuteParams} params
   * @param {AbortSignal} signal
   */
  constructor(agent, params, signal) {
    super(agent, params, signal);
    /** The output, once there is one. @type {Promise<any>} */
    this.outcome = new Promise((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
    signal.addEventListener("abort", () => this.abandon(signal.reason), { once: true });
  }

  /** Say `text` and complete the run. @param {string} text */
  async reply(text) {
    await this.say(text);
    this.finish();
  }

  /** Complete the run, with `returned` as its output instead of what was said. @param {any} [returned] */
  finish(returned) {
    if (this.#settled) return;
    this.#settled = true;
    this.#resolve(this.complete(returned));
  }

  /** Fail the run. @param {unknown} error */
  abandon(error) {
    if (this.#settled) return;
    this.#settled = true;
    this.#reject(this.fail(error));
  }
}

/** What a session's handler is given: `for await (const message of session)` until the conversation is over. */
export class Session {
  /** @type {Message[]} */ #waiting = [];
  /** @type {Message | null} */ #current = null;
  /** @type {() => void} */ #wake = () => {};
  #running = false;
  #closed = false;
  #agent;
  #handler;

  /**
   * @param {import("./agent.js").Agent} agent
   * @param {string} session_id
   * @param {(session: Session) => Promise<any>} handler
   * @param {import("./protocol.js").HistoryTurn[]} history
   */
  constructor(agent, session_id, handler, history) {
    this.#agent = agent;
    this.#handler = handler;
    this.session_id = session_id;
    /** The turns before the first message this handler will see. */
    this.history = [...history];
    /** What this conversation changes of its agent's definition, as of the latest message. @type {any} */
    this.settings = {};
    /** @type {import("./protocol.js").HistoryTurn[]} */ this.turns = [...history];
  }

  /** Whether its handler is alive. */
  get running() {
    return this.#running;
  }

  /** Whether a message is being answered or waits. */
  get busy() {
    return this.#current !== null || this.#waiting.length > 0;
  }

  /** The daemon's methods, within this agent's grants. */
  get client() {
    return this.#agent.client;
  }

  /** @returns {AsyncGenerator<Message, void>} */
  async *[Symbol.asyncIterator]() {
    for (;;) {
      this.#current?.finish();
      this.#current = null;
      while (this.#waiting.length === 0 && !this.#closed) await new Promise((resolve) => (this.#wake = () => resolve(null)));
      const message = this.#waiting.shift();
      if (!message) return;
      if (message.signal.aborted) continue;
      this.#current = message;
      this.settings = message.settings;
      yield message;
    }
  }

  /**
   * Put a message in line for the handler, and resolve to its run's output.
   * @param {import("./protocol.js").RunsExecuteParams} params
   * @param {AbortSignal} signal
   */
  async answer(params, signal) {
    if (this.#closed) throw new WitsdError(INVALID_STATE, "the conversation is over", { state: "stopping" });
    if (this.#waiting.length >= MAX_WAITING) throw new WitsdError(OVERLOADED, `${MAX_WAITING} messages wait in this conversation`);
    const message = new Message(this.#agent, params, signal);
    this.#waiting.push(message);
    this.#wake();
    if (!this.#running) this.#run();
    const output = await message.outcome;
    this.#learn("user", message.text);
    this.#learn("assistant", typeof output === "string" ? output : JSON.stringify(output));
    return output;
  }

  close() {
    this.#closed = true;
    this.#wake();
  }

  /** Run the handler, and again from its turns where it ended while messages wait. */
  async #run() {
    this.#running = true;
    try {
      while (this.#waiting.length > 0) {
        this.history = [...this.turns];
        try {
          await this.#handler(this);
          this.#current?.finish();
        } catch (error) {
          const cancelled = error instanceof WitsdError && error.code === CANCELLED;
          if (!this.#current && !cancelled) {
            // It fails before it takes a message: whoever waits must hear of it, or it would go on for ever.
            this.#waiting.shift()?.abandon(error);
          }
          this.#current?.abandon(error);
        }
        this.#current = null;
      }
    } finally {
      this.#running = false;
    }
  }

  /**
   * @param {"user" | "assistant"} role
   * @param {string} text
   */
  #learn(role, text) {
    this.turns.push({ role, text });
    if (this.turns.length > MAX_TURNS) this.turns.splice(0, this.turns.length - MAX_TURNS);
  }
}
