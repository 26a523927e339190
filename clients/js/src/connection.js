/**
 * One JSON-RPC 2.0 connection that asks and answers: under the client and under an agent alike. Requests,
 * notifications, cancellation and progress go in both directions.
 */

import {
  CANCELLED, ConnectionLost, INTERNAL_ERROR, LIMIT_EXCEEDED, METHOD_NOT_FOUND, OVERLOADED, ProtocolError, TIMEOUT, WitsdError,
} from "./errors.js";

/** @typedef {import("./protocol.js").CallOptions} CallOptions */
/**
 * What carries whole messages: a WebSocket, a Unix socket, a pair of pipes. It calls back until `onClose`.
 * @typedef {object} Transport
 * @property {(text: string) => void} send
 * @property {() => number} buffered  bytes that wait to be written
 * @property {() => Promise<void>} drained  once little waits
 * @property {() => void} close
 * @property {(text: string) => void} onMessage
 * @property {(reason: string) => void} onClose
 */
/** @typedef {(method: string, params: any, signal: AbortSignal) => Promise<any>} Handler */
/**
 * @typedef {object} Pending
 * @property {string} method
 * @property {(result: any) => void} resolve
 * @property {(error: Error) => void} reject
 * @property {((news: any) => void) | undefined} progress
 * @property {((result: any) => void) | undefined} onAnswer
 */

/** Requests of the other side being worked on; the next one is answered `overloaded`. */
const MAX_SERVING = 1024;
/** Bytes waiting to be written above which senders wait. */
const HIGH_WATER = 1 << 20;
const encoder = new TextEncoder();

export class Connection {
  #transport;
  #handler;
  #onNotification;
  #nextId = 1;
  #maxMessage = Infinity;
  #maxInFlight = 512;
  /** @type {Map<number, Pending>} */ #pending = new Map();
  /** @type {Map<string, AbortController>} */ #serving = new Map();
  /** Resolvers of requests that wait for one in flight to end. @type {(() => void)[]} */ #waiting = [];
  /** @type {(() => void)[]} */ #idle = [];
  /** @type {(reason: string) => void} */ #ended = () => {};
  /** Why the connection ended; empty while it lasts. */
  reason = "";
  /** What the other side said to nobody in particular: why it hangs up. @type {WitsdError | null} */
  partingError = null;

  /**
   * @param {Transport} transport
   * @param {{handler?: Handler, onNotification?: (method: string, params: any) => void}} [sides]
   */
  constructor(transport, { handler, onNotification } = {}) {
    this.#transport = transport;
    this.#handler = handler;
    this.#onNotification = onNotification;
    /** Resolves with the reason once the connection has ended. @type {Promise<string>} */
    this.closed = new Promise((resolve) => (this.#ended = resolve));
    transport.onMessage = (text) => this.#take(text);
    transport.onClose = (reason) => this.close(reason);
  }

  /**
   * Keep to what the other side announced, so that it never has to refuse.
   * @param {{message_bytes: number, in_flight: number}} limits
   */
  setLimits({ message_bytes, in_flight }) {
    this.#maxMessage = message_bytes;
    this.#maxInFlight = in_flight;
  }

  /**
   * Ask. Rejects with the error that was answered, with `ConnectionLost` when the connection ends first, and with
   * the signal's reason; the other side is told that it need not go on. `onAnswer` sees the result before anything
   * that follows it on the wire.
   * @param {string} method
   * @param {any} [params]
   * @param {CallOptions & {onAnswer?: (result: any) => void}} [options]
   * @returns {Promise<any>}
   */
  async request(method, params = {}, { signal, progress, timeout_s, onAnswer } = {}) {
    signal?.throwIfAborted();
    while (this.#pending.size >= this.#maxInFlight && !this.reason) {
      await new Promise((resolve) => this.#waiting.push(() => resolve(null)));
      signal?.throwIfAborted();
    }
    if (this.reason) throw new ConnectionLost(`the connection ended (${this.reason})`);
    const id = this.#nextId++;
    const given = progress ? { ...params, _meta: { progress_token: id } } : params;
    const text = JSON.stringify({ jsonrpc: "2.0", id, method, params: given });
    // The daemon would answer with a null id, which leads back to nobody.
    if (text.length > this.#maxMessage / 3) {
      const size = encoder.encode(text).length;
      if (size > this.#maxMessage) {
        throw new WitsdError(
          LIMIT_EXCEEDED,
          `${method}: ${size} bytes are more than the ${this.#maxMessage} a message may have`,
          { limit: "message_bytes", value: this.#maxMessage },
        );
      }
    }
    /** @type {ReturnType<typeof setTimeout> | undefined} */ let timer;
    /** @type {(() => void) | undefined} */ let aborted;
    try {
      return await new Promise((resolve, reject) => {
        this.#pending.set(id, { method, resolve, reject, progress, onAnswer });
        /** @param {any} error */
        const give_up = (error) => {
          if (this.#pending.delete(id)) this.notify("notifications/cancelled", { request_id: id });
          reject(error);
        };
        aborted = () => give_up(signal?.reason);
        signal?.addEventListener("abort", aborted);
        if (timeout_s !== undefined) {
          const late = new WitsdError(TIMEOUT, `${method} was not answered within ${timeout_s} s`);
          timer = setTimeout(() => give_up(late), timeout_s * 1000);
        }
        this.#transport.send(text);
      });
    } finally {
      clearTimeout(timer);
      if (aborted) signal?.removeEventListener("abort", aborted);
      this.#pending.delete(id);
      this.#waiting.shift()?.();
    }
  }

  /**
   * Tell, without an answer.
   * @param {string} method
   * @param {any} params
   */
  notify(method, params) {
    if (!this.reason) this.#transport.send(JSON.stringify({ jsonrpc: "2.0", method, params }));
  }

  /** Resolves when little is left to be written, so that who only tells does not fill memory. */
  async room() {
    if (!this.reason && this.#transport.buffered() > HIGH_WATER) await this.#transport.drained();
  }

  /** Resolves when no request of the other side is being worked on. */
  async served() {
    while (this.#serving.size > 0 && !this.reason) await new Promise((resolve) => this.#idle.push(() => resolve(null)));
  }

  /**
   * End it: requests in flight reject with `ConnectionLost`, served ones are aborted.
   * @param {string} reason
   */
  close(reason) {
    if (this.reason) return;
    this.reason = this.partingError ? `${reason}: ${this.partingError.message}` : reason || "closed";
    const lost = new ConnectionLost(`the connection ended (${this.reason})`);
    for (const pending of [...this.#pending.values()]) pending.reject(lost);
    this.#pending.clear();
    for (const controller of this.#serving.values()) controller.abort(lost);
    for (const wake of [...this.#waiting.splice(0), ...this.#idle.splice(0)]) wake();
    this.#transport.close();
    this.#ended(this.reason);
  }

  // ---- reading ------------------------------------------------------------------------------------

  /** @param {string} text */
  #take(text) {
    let message;
    try {
      message = JSON.parse(text);
    } catch {
      return; // a line that is no message harms nobody
    }
    for (const one of Array.isArray(message) ? message : [message]) {
      if (one !== null && typeof one === "object") this.#dispatch(one);
    }
  }

  /** @param {any} message */
  #dispatch(message) {
    if (typeof message.method === "string") {
      if (message.id === undefined) this.#notified(message.method, message.params ?? {});
      else this.#asked(message.id, message.method, message.params ?? {});
      return;
    }
    const pending = this.#pending.get(message.id);
    if (message.error) {
      const { code, message: text, data } = message.error;
      const failure = new WitsdError(code, String(text), data && typeof data === "object" ? data : {});
      if (pending) pending.reject(failure);
      else if (message.id === null || message.id === undefined) this.partingError = failure;
    } else if (pending) {
      try {
        pending.onAnswer?.(message.result);
        pending.resolve(message.result);
      } catch (error) {
        pending.reject(new ProtocolError(`the result of ${pending.method} has another shape: ${error}`));
      }
    }
  }

  /**
   * @param {string} method
   * @param {any} params
   */
  #notified(method, params) {
    if (method === "notifications/cancelled") {
      const controller = this.#serving.get(JSON.stringify(params.request_id ?? params.requestId));
      controller?.abort(new WitsdError(CANCELLED, "cancelled as asked"));
    } else if (method === "notifications/progress") {
      this.#pending.get(params.progress_token)?.progress?.(params);
    } else {
      this.#onNotification?.(method, params);
    }
  }

  /**
   * @param {any} id
   * @param {string} method
   * @param {any} params
   */
  async #asked(id, method, params) {
    const key = JSON.stringify(id);
    const controller = new AbortController();
    /** @type {any} */ let answer;
    if (this.#serving.size >= MAX_SERVING) {
      answer = { error: asWire(new WitsdError(OVERLOADED, "too many requests at once", { retry_after_ms: 100 }), method) };
    } else if (!this.#handler) {
      answer = { error: asWire(new WitsdError(METHOD_NOT_FOUND, `nothing here answers ${method}`), method) };
    } else {
      this.#serving.set(key, controller);
      try {
        answer = { result: (await this.#handler(method, params, controller.signal)) ?? null };
      } catch (error) {
        answer = { error: asWire(controller.signal.aborted ? controller.signal.reason : error, method) };
      }
    }
    this.#serving.delete(key);
    if (!this.reason) this.#transport.send(JSON.stringify({ jsonrpc: "2.0", id, ...answer }));
    if (this.#serving.size === 0) for (const wake of this.#idle.splice(0)) wake();
  }
}

/**
 * @param {any} error
 * @param {string} method
 */
function asWire(error, method) {
  if (error instanceof WitsdError) return { code: error.code, message: error.message, data: error.data };
  console.error(`${method} failed:`, error);
  const hidden = new WitsdError(INTERNAL_ERROR, `${method} failed: see the log`);
  return { code: hidden.code, message: hidden.message, data: hidden.data };
}
