/** One JSON message per text message; a backlog may arrive as a batch array. The same in browsers and in Node. */

import { DaemonNotRunning } from "./errors.js";

/** How long being connected may take. */
const HANDSHAKE_MS = 10_000;
/** How often what is left to be written is looked at, while somebody waits for it. */
const LOOK_MS = 20;

/**
 * @param {string} url  `ws://127.0.0.1:9487/ws`
 * @param {{new (url: string): any}} [Constructor]  where there is no global `WebSocket` (Node 20): that of `ws`
 * @returns {Promise<import("./connection.js").Transport>}
 */
export async function dialWebSocket(url, Constructor = globalThis.WebSocket) {
  const parts = new URL(url);
  // A secret in a URL ends up in logs and histories.
  if (parts.search || parts.username || parts.password) throw new TypeError("no secret goes into a URL: give it as `token`");
  if (!Constructor) throw new TypeError("there is no WebSocket here: give a constructor, e.g. that of the package ws");
  const socket = new Constructor(url);
  /** @type {import("./connection.js").Transport} */
  const transport = {
    send: (text) => socket.readyState === 1 && socket.send(text),
    buffered: () => socket.bufferedAmount,
    drained: async () => {
      while (socket.readyState === 1 && socket.bufferedAmount > 0) await new Promise((wake) => setTimeout(wake, LOOK_MS));
    },
    close: () => socket.close(),
    onMessage: () => {},
    onClose: () => {},
  };
  await new Promise((resolve, reject) => {
    const late = setTimeout(() => {
      socket.close();
      reject(new DaemonNotRunning(url, "the handshake was not answered"));
    }, HANDSHAKE_MS);
    socket.addEventListener("open", () => {
      clearTimeout(late);
      resolve(null);
    });
    socket.addEventListener("error", () => {
      clearTimeout(late);
      reject(new DaemonNotRunning(url, "it does not answer, or refuses"));
    });
    socket.addEventListener("close", (/** @type {any} */ event) => {
      clearTimeout(late);
      reject(new DaemonNotRunning(url, "it hung up"));
      transport.onClose(event.reason || "the other side closed it");
    });
    socket.addEventListener("message", (/** @type {any} */ event) => {
      if (typeof event.data === "string") transport.onMessage(event.data);
    });
  });
  return transport;
}
