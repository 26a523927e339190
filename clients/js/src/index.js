/** `@witsd/client`: one source for browsers and Node. */

export { Answer } from "./answer.js";
export { Client, connect } from "./client.js";
export * from "./errors.js";
export { ERRORS, PROTOCOL_VERSION, RUN_ENDED } from "./generated.js";
export { Subscription } from "./subscription.js";
