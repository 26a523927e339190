/** The agent side, in Node: handlers, what it says of itself, and `serve`. */

import { bind } from "./client.js";
import { Connection } from "./connection.js";
import { CANCELLED, INVALID_STATE, METHOD_NOT_FOUND, WitsdError } from "./errors.js";
import { PROTOCOL_VERSION } from "./generated.js";
import { Run } from "./run.js";
import { Session } from "./session.js";

export { Run } from "./run.js";
export { Message, Session } from "./session.js";

/** @typedef {import("./protocol.js").RunsExecuteParams} ExecuteParams */
/** @typedef {import("./protocol.js").CallOptions} CallOptions */
/** @typedef {{call: (method: string, params?: any, options?: CallOptions) => Promise<any>} & import("./protocol.js").Api} AgentClient */

/** Conversations kept alive; beyond it, the one longest idle begins again from its turns when it goes on. */
const MAX_SESSIONS = 256;

/** An agent. An exception in a handler fails that run and no other; throw a `WitsdError` to choose the code. */
export class Agent {
  /** @type {((run: Run) => any) | undefined} */ #runs;
  /** @type {((session: Session) => Promise<any>) | undefined} */ #conversations;
  /** @type {Map<string, Session>} */ #sessions = new Map();
  /** @type {Connection | null} */ #connection = null;
  /** @type {{name: string, description: string, input_schema: object}[]} */ #skills = [];
  /** @type {Map<string, {definition: object, work: (args: any, signal: AbortSignal) => any}>} */ #tools = new Map();
  #ending = false;
  #name;
  #version;
  /** From the daemon's `initialize`: who this agent is there. @type {import("./protocol.js").AgentIdentity | null} */
  identity = null;
  /** A private folder, emptied when this process ends. */
  run_dir = "";

  /**
   * @param {string} name
   * @param {{version?: string}} [options]
   */
  constructor(name, { version = "" } = {}) {
    this.#name = name;
    this.#version = version;
    /** The daemon as this agent may use it, within its grants. @type {AgentClient} */
    this.client = /** @type {any} */ ({});
    bind(this.client, (method, params, options) => this.#link().request(method, params, options));
    this.client.call = (method, params, options) => this.#link().request(method, params, options);
  }

  /** `handler(run)` does one piece of work. What it returns is the output. @param {(run: Run) => any} handler */
  run(handler) {
    this.#runs = handler;
  }

  /** `handler(session)` leads one conversation, for as long as it lasts. @param {(session: Session) => Promise<any>} handler */
  session(handler) {
    this.#conversations = handler;
  }

  /**
   * Declare something this agent can do; others find it by it.
   * @param {string} name
   * @param {string} [description]
   * @param {object} [input_schema]
   */
  skill(name, description = "", input_schema = {}) {
    this.#skills.push({ name, description, input_schema });
  }

  /**
   * Bring a tool: others call it by `tools/call`. What `work` returns is its result; what it throws is told as failed.
   * @param {string} name
   * @param {string} description
   * @param {object} input_schema  a JSON Schema of the arguments
   * @param {(args: any, signal: AbortSignal) => any} work
   */
  tool(name, description, input_schema, work) {
    this.#tools.set(name, { definition: { name, description, input_schema }, work });
  }

  /** `[options]` of the definition. @returns {Record<string, any>} */
  get options() {
    return this.identity?.options ?? {};
  }

  /** The name in the agent's definition; before `initialize` the one given here. */
  get name() {
    return this.identity?.name ?? this.#name;
  }

  /**
   * Serve the daemon on stdin and stdout until it says `shutdown` or hangs up, then end the process: what handlers
   * still wait for is of no use to anybody. `console.log` goes to the agent's log.
   */
  async serve() {
    if (process.stdin.isTTY) {
      console.error(
        `${this.#name} is a witsd agent and waits for JSON-RPC on stdin. To use it:\n` +
          `  witsd agent add ${this.#name} -- node ${process.argv[1]}\n  witsd ask ${this.#name} hello`,
      );
    }
    const { stdio } = await import("./node.js");
    await this.serveOn(stdio());
    process.stdout.write("", () => process.exit());
  }

  /** Serve over any transport; resolves after `shutdown` or when the other side hangs up. @param {import("./connection.js").Transport} transport */
  async serveOn(transport) {
    this.#connection = new Connection(transport, {
      handler: (method, params, signal) => this.#handle(method, params, signal),
      onNotification: (method, params) => {
        if (method !== "notifications/session_closed") return;
        this.#sessions.get(params.session_id)?.close();
        this.#sessions.delete(params.session_id);
      },
    });
    await this.#connection.closed;
    for (const session of this.#sessions.values()) session.close();
    this.#sessions.clear();
  }

  /**
   * For runs: tell, and wait while much is unsent.
   * @param {string} method
   * @param {any} params
   */
  async tell(method, params) {
    const connection = this.#link();
    connection.notify(method, params);
    await connection.room();
  }

  #link() {
    if (!this.#connection) throw new Error("the agent is not being served: call this from a handler");
    return this.#connection;
  }

  /**
   * @param {string} method
   * @param {any} params
   * @param {AbortSignal} signal
   * @returns {Promise<any>}
   */
  async #handle(method, params, signal) {
    switch (method) {
      case "initialize":
        this.identity = params.agent;
        this.run_dir = params.run_dir;
        return {
          protocol_version: PROTOCOL_VERSION,
          agent_info: { name: this.#name, version: this.#version },
          capabilities: { sessions: this.#conversations !== undefined },
          tools: [...this.#tools.values()].map((tool) => tool.definition),
          skills: this.#skills,
        };
      case "runs/execute":
        return { output: await this.#execute(params, signal) };
      case "tools/call":
        return this.#call(params, signal);
      case "ping":
        return { nonce: params.nonce };
      case "shutdown":
        if (!this.#ending) this.#windDown();
        return {};
      default:
        throw new WitsdError(METHOD_NOT_FOUND, `an agent has no method ${method}`);
    }
  }

  /** Let the work in progress come to its end, then leave. */
  async #windDown() {
    this.#ending = true;
    const connection = this.#link();
    await new Promise((resolve) => setImmediate(resolve)); // the answer to `shutdown` itself goes out first
    await connection.served();
    connection.close("shutdown");
  }

  /**
   * @param {ExecuteParams} params
   * @param {AbortSignal} signal
   */
  async #execute(params, signal) {
    if (this.#ending) throw new WitsdError(INVALID_STATE, "the agent is stopping", { state: "stopping" });
    const { session_id } = params;
    if (this.#conversations && (session_id !== undefined || !this.#runs)) {
      const session = this.#session(params, this.#conversations);
      try {
        return await session.answer(params, signal);
      } finally {
        if (session_id === undefined) session.close();
      }
    }
    if (!this.#runs) throw new WitsdError(INVALID_STATE, "this agent has no handler", { state: "active" });
    const run = new Run(this, params, signal);
    try {
      return run.complete(await orAborted(this.#runs(run), signal));
    } catch (error) {
      throw run.fail(error);
    }
  }

  /**
   * @param {ExecuteParams} params
   * @param {(session: Session) => Promise<any>} handler
   */
  #session(params, handler) {
    const { session_id, history } = params;
    if (session_id === undefined) return new Session(this, params.run_id, handler, []);
    let known = this.#sessions.get(session_id);
    this.#sessions.delete(session_id);
    if (known && history !== undefined) {
      known.close();
      known = undefined;
    }
    known ??= new Session(this, session_id, handler, history ?? []);
    this.#sessions.set(session_id, known); // the latest stands last
    this.#rest(handler);
    return known;
  }

  /** End the handlers of conversations that were idle for longest; their turns stay. @param {(session: Session) => Promise<any>} handler */
  #rest(handler) {
    const live = [...this.#sessions].filter(([, session]) => session.running);
    for (const [id, session] of live.slice(0, Math.max(0, live.length - MAX_SESSIONS))) {
      if (session.busy) continue;
      session.close();
      this.#sessions.set(id, new Session(this, id, handler, session.turns));
    }
  }

  /**
   * @param {any} params
   * @param {AbortSignal} signal
   */
  async #call(params, signal) {
    const tool = this.#tools.get(params.name);
    if (!tool) throw new WitsdError(METHOD_NOT_FOUND, `${this.name} has no tool ${params.name}`);
    try {
      const value = await orAborted(tool.work(params.arguments ?? {}, signal), signal);
      const text = typeof value === "string" ? value : (JSON.stringify(value) ?? "");
      const plain = value !== null && typeof value === "object" && !Array.isArray(value);
      return {
        content: [{ type: "text", text }],
        ...(typeof value === "string" || value === undefined ? {} : { structured_content: plain ? value : { result: value } }),
        is_error: false,
      };
    } catch (error) {
      if (signal.aborted || error instanceof WitsdError) throw error;
      console.error(error);
      return { content: [{ type: "text", text: error instanceof Error ? error.message : String(error) }], is_error: true };
    }
  }
}

/**
 * What `work` resolves to, unless the run is cancelled first: a handler that hears no signal keeps nobody waiting.
 * @param {any} work
 * @param {AbortSignal} signal
 */
async function orAborted(work, signal) {
  /** @type {() => void} */ let stop = () => {};
  const aborted = new Promise((_, reject) => {
    stop = () => reject(new WitsdError(CANCELLED, "cancelled as asked"));
    signal.addEventListener("abort", stop);
    if (signal.aborted) stop();
  });
  try {
    return await Promise.race([work, aborted]);
  } finally {
    signal.removeEventListener("abort", stop);
  }
}
