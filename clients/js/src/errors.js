/** What can go wrong. Branch on `code` (or on the class), never on a message. */

import { ERRORS } from "./generated.js";

/** An error that the daemon answered, or one of the same table that was found here. */
export class WitsdError extends Error {
  /**
   * @param {number} code
   * @param {string} message
   * @param {Record<string, any>} [data]
   */
  constructor(code, message, data = {}) {
    super(message);
    /** One of the protocol's codes. */
    this.code = code;
    /** What a program needs to know of it; always with `name` and `retryable`. @type {Record<string, any>} */
    this.data = { name: ERRORS[code]?.name ?? "error", retryable: ERRORS[code]?.retryable ?? false, ...data };
    this.name = "WitsdError";
  }

  /** Whether the same call may succeed later. */
  get retryable() {
    return Boolean(this.data.retryable);
  }
}

/** The connection ended before the answer: whether the request was carried out is not known. */
export class ConnectionLost extends Error {
  /** @param {string} message */
  constructor(message) {
    super(message);
    this.name = "ConnectionLost";
  }
}

/** Nobody answers where the daemon should be. */
export class DaemonNotRunning extends Error {
  /**
   * @param {string} address
   * @param {string} [why]
   */
  constructor(address, why = "nothing is there") {
    super(`no daemon at ${address} (${why}): start it with \`witsd up\``);
    this.name = "DaemonNotRunning";
    this.address = address;
  }
}

/** What came is not of this protocol. */
export class ProtocolError extends Error {
  /** @param {string} message */
  constructor(message) {
    super(message);
    this.name = "ProtocolError";
  }
}

/** A run that did not complete. */
export class RunFailed extends Error {
  /**
   * @param {import("./protocol.js").Run} run
   */
  constructor(run) {
    const reason = run.error?.message ?? `the run was ${run.status}${run.reason ? `: ${run.reason}` : ""}`;
    super(reason);
    this.name = "RunFailed";
    /** The run as it ended. */
    this.run = run;
    this.code = run.error?.code;
  }
}

export const CANCELLED = -32800;
export const METHOD_NOT_FOUND = -32601;
export const INTERNAL_ERROR = -32603;
export const INVALID_PARAMS = -32602;
export const OVERLOADED = -32001;
export const NOT_FOUND = -32002;
export const PERMISSION_DENIED = -32003;
export const UNAUTHENTICATED = -32004;
export const INVALID_STATE = -32005;
export const TIMEOUT = -32006;
export const AGENT_FAILED = -32007;
export const LIMIT_EXCEEDED = -32008;
export const RESYNC_REQUIRED = -32010;
