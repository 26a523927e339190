/** The client: typed calls, subscriptions that go on by themselves, and a connection that comes back. */

import { Answer, followRun } from "./answer.js";
import { Connection } from "./connection.js";
import { ConnectionLost, DaemonNotRunning, INVALID_PARAMS, PERMISSION_DENIED, UNAUTHENTICATED, WitsdError } from "./errors.js";
import { METHODS, PROTOCOL_VERSION } from "./generated.js";
import { Subscription } from "./subscription.js";
import { dialWebSocket } from "./websocket.js";

/** @typedef {import("./protocol.js").CallOptions} CallOptions */
/** @typedef {import("./subscription.js").SubscribeOptions} SubscribeOptions */
/**
 * @typedef {object} ConnectOptions
 * @property {string} [token]  needed over a WebSocket; goes into the first message, never into the URL
 * @property {string} [name]  what the daemon calls this client
 * @property {string} [version]
 * @property {{new (url: string): any}} [WebSocket]  where there is no global one (Node 20)
 * @property {number} [reconnect_timeout_s]  how long a call waits for a connection that is being made again
 * @property {(state: "connected" | "connecting" | "closed", why: string) => void} [onState]
 */

/** Pause before the nth attempt to reconnect: up to `FIRST * 2**n`, never over `LONGEST`. */
const FIRST_PAUSE_MS = 50;
const LONGEST_PAUSE_MS = 2000;
const INITIALIZE_TIMEOUT_S = 60;
/** Answers after which trying again is no use. */
const FINAL = new Set([UNAUTHENTICATED, PERMISSION_DENIED, INVALID_PARAMS]);

/**
 * A connection to the daemon. Made by `connect`.
 *
 * `client.agents.list()` and its like are the daemon's methods, typed; `call` reaches any by its name. Requests in
 * flight when the connection drops reject with `ConnectionLost`: whether they were carried out is not known, so
 * repeat those that are safe to repeat (`idempotency_key` makes them so).
 */
export class Client {
  #dial;
  #options;
  /** @type {Connection | null} */ #connection = null;
  /** @type {Error | null} */ #over = null;
  /** @type {((value: null) => void)[]} */ #waiting = [];
  /** Held strongly: while a reader waits, nothing else holds it and its subscription. @type {Map<string, Subscription>} */
  #feeds = new Map();
  /** @type {Set<string>} */ #ended = new Set();
  /** @type {() => void} */ #stopPause = () => {};
  /** What the daemon said of itself at the latest connection. @type {import("./protocol.js").InitializeResult | null} */
  server = null;

  /**
   * @param {() => Promise<import("./connection.js").Transport>} dial
   * @param {ConnectOptions} options
   */
  constructor(dial, options) {
    this.#dial = dial;
    this.#options = options;
    bind(this, (method, params, given) => this.call(method, params, given));
  }

  // ---- calls --------------------------------------------------------------------------------------

  /**
   * Call any method by name.
   * @param {string} method
   * @param {any} [params]
   * @param {CallOptions} [options]
   * @returns {Promise<any>}
   */
  async call(method, params = {}, options = {}) {
    const connection = this.#connection ?? (await this.#ready(options.signal));
    return connection.request(method, params, options);
  }

  // ---- events -------------------------------------------------------------------------------------

  /**
   * Follow streams (patterns such as `run:*`), from now on or from `since`.
   * @param {string | readonly string[]} streams
   * @param {SubscribeOptions} [options]
   */
  subscribe(streams, options = {}) {
    return new Subscription(this, typeof streams === "string" ? [streams] : streams, options);
  }

  /**
   * Every event of a run from its beginning to its end.
   * @param {string} run_id
   * @param {{signal?: AbortSignal}} [options]
   */
  streamRun(run_id, options = {}) {
    return followRun(this, run_id, options);
  }

  /**
   * Ask an agent, and iterate over the text of its answer as it is produced. With `session_id` it is a turn of that
   * conversation. The work begins when iteration does.
   * @param {string} agent
   * @param {string} text
   * @param {{session_id?: string, cwd?: string, signal?: AbortSignal}} [options]
   */
  ask(agent, text, { session_id, cwd, signal } = {}) {
    return new Answer(this, async () => {
      if (session_id !== undefined) {
        const params = { session_id, text, ...(cwd === undefined ? {} : { cwd }) };
        return (await this.call("sessions/prompt", params, { signal })).run_id;
      }
      const input = cwd === undefined ? { text } : { text, cwd };
      return (await this.call("runs/start", { agent, input }, { signal })).run_id;
    }, signal);
  }

  // ---- the connection -----------------------------------------------------------------------------

  /** Whether a call made now would go out at once. */
  get connected() {
    return this.#connection !== null;
  }

  /** Resolves when there is a connection, however long it takes; rejects when trying again is no use. */
  async waitConnected() {
    await this.#wait();
  }

  /** Nothing works after this. */
  close() {
    this.#finish(new ConnectionLost("this client is closed"));
  }

  async [Symbol.asyncDispose]() {
    this.close();
  }

  /** Keep a connection for as long as the client lives; resolves once the first one is there. */
  async serve() {
    await this.#open();
    this.#keep();
  }

  async #keep() {
    let attempt = 0;
    while (!this.#over) {
      const connection = this.#connection;
      if (connection) {
        const reason = await connection.closed;
        this.#lose();
        if (this.#over) return;
        this.#options.onState?.("connecting", reason);
        attempt = 0;
      }
      const pause = Math.random() * Math.min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** attempt);
      attempt = Math.min(attempt + 1, 16);
      await new Promise((resolve) => {
        const timer = setTimeout(resolve, pause, null);
        this.#stopPause = () => {
          clearTimeout(timer);
          resolve(null);
        };
      });
      if (this.#over) return;
      try {
        await this.#open();
      } catch (error) {
        if (error instanceof WitsdError && FINAL.has(error.code)) return this.#finish(error);
        this.#options.onState?.("connecting", error instanceof Error ? error.message : String(error));
      }
    }
  }

  async #open() {
    const transport = await this.#dial();
    const connection = new Connection(transport, { onNotification: (method, params) => this.#notified(method, params) });
    const { token, name = "@witsd/client", version = "0.1.0" } = this.#options;
    try {
      /** @type {import("./protocol.js").InitializeResult} */
      const server = await connection.request(
        "initialize",
        { protocol_version: PROTOCOL_VERSION, client_info: { name, version }, capabilities: {}, ...(token ? { token } : {}) },
        { timeout_s: INITIALIZE_TIMEOUT_S },
      );
      connection.setLimits(server.limits);
      this.server = server;
    } catch (error) {
      connection.close("initialize failed");
      throw connection.partingError ?? error;
    }
    if (this.#over) return connection.close("closed");
    this.#connection = connection;
    for (const wake of this.#waiting.splice(0)) wake(null);
    this.#options.onState?.("connected", "");
  }

  async #wait() {
    for (;;) {
      if (this.#over) throw this.#over;
      if (this.#connection && !this.#connection.reason) return this.#connection;
      await new Promise((resolve) => this.#waiting.push(resolve));
    }
  }

  /** @param {AbortSignal} [signal] @returns {Promise<Connection>} */
  async #ready(signal) {
    const limit = this.#options.reconnect_timeout_s ?? 30;
    /** @type {ReturnType<typeof setTimeout> | undefined} */ let timer;
    /** @type {(() => void) | undefined} */ let aborted;
    try {
      return await Promise.race([
        this.#wait(),
        new Promise((_, reject) => {
          timer = setTimeout(() => reject(new ConnectionLost(`no connection to the daemon for ${limit} s`)), limit * 1000);
          aborted = () => reject(signal?.reason);
          signal?.addEventListener("abort", aborted);
          if (signal?.aborted) aborted();
        }),
      ]);
    } finally {
      clearTimeout(timer);
      if (aborted) signal?.removeEventListener("abort", aborted);
    }
  }

  #lose() {
    this.#connection = null;
    const feeds = [...this.#feeds.values()];
    this.#feeds.clear();
    this.#ended.clear();
    for (const feed of feeds) feed.disconnected();
  }

  /** @param {Error} why */
  #finish(why) {
    if (this.#over) return;
    this.#over = why;
    const connection = this.#connection;
    this.#lose();
    connection?.close("closed");
    this.#stopPause();
    for (const wake of this.#waiting.splice(0)) wake(null);
    this.#options.onState?.("closed", why.message);
  }

  // ---- for subscriptions --------------------------------------------------------------------------

  /**
   * `events/subscribe`; `onAnswer` runs before any event of the subscription is handled.
   * @param {import("./protocol.js").EventsSubscribeParams} params
   * @param {(result: import("./protocol.js").EventsSubscribeResult) => void} onAnswer
   */
  async subscribeCall(params, onAnswer) {
    const connection = await this.#wait();
    await connection.request("events/subscribe", params, { onAnswer });
  }

  /**
   * @param {string} wireId
   * @param {Subscription} feed
   */
  addFeed(wireId, feed) {
    this.#feeds.set(wireId, feed);
  }

  /** @param {string} wireId */
  forgetFeed(wireId) {
    this.#feeds.delete(wireId);
    this.#ended.add(wireId);
  }

  /** Forget a subscription and have the daemon end it, without waiting. @param {string} wireId */
  dropFeed(wireId) {
    this.forgetFeed(wireId);
    this.unsubscribe(wireId);
  }

  /** @param {string} wireId */
  async unsubscribe(wireId) {
    try {
      await this.#connection?.request("events/unsubscribe", { subscription_id: wireId });
    } catch {
      // it has ended by itself, or with its connection
    }
    this.#ended.delete(wireId);
  }

  /**
   * @param {string} method
   * @param {any} params
   */
  #notified(method, params) {
    const feed = this.#feeds.get(params.subscription_id);
    if (method === "notifications/event") {
      const { subscription_id, ...event } = params;
      if (feed) feed.put(event);
      else if (!this.#ended.has(subscription_id)) this.dropFeed(subscription_id);
    } else if (method === "notifications/lagged") {
      this.#feeds.delete(params.subscription_id);
      feed?.lagged(params.pos);
    }
  }
}

/**
 * Give `target` a property for each noun with a function for each method.
 * @param {any} target
 * @param {(method: string, params: any, options: CallOptions | undefined) => Promise<any>} call
 */
export function bind(target, call) {
  for (const [noun, verbs] of Object.entries(METHODS)) {
    const place = noun ? (target[noun] = {}) : target;
    for (const verb of verbs) {
      if (verb.includes(".")) continue;
      const method = noun ? `${noun}/${verb}` : verb;
      place[verb] = (/** @type {any} */ params, /** @type {CallOptions | undefined} */ options) => call(method, params, options);
    }
  }
}

/**
 * Connect to the daemon, again after each drop until `close`.
 *
 * `target` is a socket's path or a `ws://127.0.0.1:9487/ws` URL. Absent it is this machine's daemon: in Node by its
 * Unix socket, in the daemon's own page by the WebSocket it came from. Rejects with `DaemonNotRunning` where nobody
 * answers at first, and with what the daemon answers to `initialize`.
 * @param {string | null} [target]
 * @param {ConnectOptions} [options]
 * @returns {Promise<Client & import("./protocol.js").Api>}
 */
export async function connect(target = null, options = {}) {
  const place = target ?? ownPlace();
  const client = new Client(async () => {
    if (place !== null && /^wss?:\/\//.test(place)) return dialWebSocket(place, options.WebSocket);
    if (typeof process === "undefined" || !process.versions?.node) {
      throw new DaemonNotRunning(String(place), "a browser reaches it by ws://127.0.0.1:9487/ws");
    }
    const { dialUnix, socketPath } = await import("./node.js");
    return dialUnix(place?.replace(/^unix:/, "") ?? socketPath());
  }, options);
  await client.serve();
  return /** @type {any} */ (client);
}

function ownPlace() {
  if (typeof window === "undefined" || typeof location === "undefined") return null;
  return `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/ws`;
}
