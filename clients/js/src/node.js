/** What only Node has: the Unix socket, and an agent's stdin and stdout. Imported when it is needed. */

import { createConnection } from "node:net";
import { readFileSync, existsSync } from "node:fs";
import { homedir } from "node:os";
import { isAbsolute, join, resolve } from "node:path";
import { StringDecoder } from "node:string_decoder";

import { DaemonNotRunning } from "./errors.js";

/** @typedef {import("./connection.js").Transport} Transport */

/** What the kernel takes for a Unix socket's path, in bytes. */
const MAX_SOCKET_PATH = 107;
/** Longest message taken from the other side, in characters. */
const MAX_MESSAGE = 64 << 20;

/**
 * Where this machine's daemon listens: `WITSD_LISTEN_UNIX`, `listen.unix` of `witsd.toml`, else `witsd.sock` in
 * `WITSD_HOME`, else in the platform's runtime folder.
 * @param {Record<string, string | undefined>} [env]
 */
export function socketPath(env = process.env) {
  const home = env.HOME || homedir();
  /** @param {string} path */
  const absolute = (path) => resolve(path === "~" || path.startsWith("~/") ? home + path.slice(1) : path);
  /** @param {string | undefined} given */
  const xdg = (given) => (given && isAbsolute(given) ? given : undefined);
  let config, runtime;
  if (env.WITSD_HOME) {
    config = runtime = absolute(env.WITSD_HOME);
  } else {
    const mac = process.platform === "darwin" ? join(home, "Library/Application Support/witsd") : undefined;
    config = mac ?? join(xdg(env.XDG_CONFIG_HOME) ?? join(home, ".config"), "witsd");
    const data = mac ?? join(xdg(env.XDG_DATA_HOME) ?? join(home, ".local/share"), "witsd");
    const own = xdg(env.XDG_RUNTIME_DIR) ?? (existsSync(`/run/user/${process.getuid?.()}`) ? `/run/user/${process.getuid?.()}` : undefined);
    runtime = own ? join(own, "witsd") : join(data, "run");
  }
  const given = env.WITSD_LISTEN_UNIX || configured(join(config, "witsd.toml"));
  return given ? absolute(given) : join(runtime, "witsd.sock");
}

/** `unix` under `[listen]`, which is one plain string. @param {string} file */
function configured(file) {
  let section = "";
  try {
    for (const line of readFileSync(file, "utf8").split("\n")) {
      const head = /^\s*\[([^[\]]+)\]\s*(#.*)?$/.exec(line);
      if (head) section = head[1].trim();
      const found = /^\s*(?:(listen)\.)?unix\s*=\s*(?:"([^"\\]*)"|'([^']*)')/.exec(line);
      if (found && (section === "listen" ? !found[1] : section === "" && found[1])) return found[2] ?? found[3];
    }
  } catch {
    return undefined; // the daemon is the one to say what is wrong with it
  }
  return undefined;
}

/**
 * Newline-delimited JSON over a pair of streams.
 * @param {import("node:stream").Readable} input
 * @param {import("node:stream").Writable} output
 * @returns {Transport}
 */
export function lines(input, output) {
  const decoder = new StringDecoder("utf8");
  /** @type {string[]} */ let parts = [];
  let size = 0;
  let over = false;
  /** @param {string} reason */
  const end = (reason) => {
    if (over) return;
    over = true;
    const rest = parts.join("").trim();
    parts = [];
    if (rest) transport.onMessage(rest);
    transport.onClose(reason);
  };
  /** @type {Transport} */
  const transport = {
    send: (text) => {
      if (!over && output.writable) output.write(`${text}\n`);
    },
    buffered: () => output.writableLength,
    drained: () =>
      new Promise((wake) => {
        if (over || output.writableLength === 0) return wake();
        const done = () => {
          for (const name of ["drain", "close", "error"]) output.off(name, done);
          wake();
        };
        for (const name of ["drain", "close", "error"]) output.on(name, done);
      }),
    close: () => {
      over = true;
      output.end();
      input.destroy();
    },
    onMessage: () => {},
    onClose: () => {},
  };
  input.on("data", (chunk) => {
    const pieces = decoder.write(chunk).split("\n");
    pieces.forEach((piece, index) => {
      parts.push(piece);
      size += piece.length;
      if (size > MAX_MESSAGE) {
        input.destroy();
        return end(`a message of over ${MAX_MESSAGE} characters`);
      }
      if (index === pieces.length - 1) return;
      const line = parts.join("");
      parts = [];
      size = 0;
      if (!over && line.trim()) transport.onMessage(line);
    });
  });
  input.on("end", () => end("the other side closed it"));
  input.on("close", () => end("the other side closed it"));
  input.on("error", (error) => end(error.message));
  output.on("error", (error) => end(error.message));
  return transport;
}

/**
 * @param {string} path
 * @returns {Promise<Transport>}
 */
export async function dialUnix(path) {
  const bytes = Buffer.byteLength(path);
  if (bytes > MAX_SOCKET_PATH) {
    throw new DaemonNotRunning(path, `a socket's path has at most ${MAX_SOCKET_PATH} bytes and this one has ${bytes}`);
  }
  const socket = createConnection(path);
  await new Promise((resolve, reject) => {
    socket.once("connect", () => resolve(null));
    socket.once("error", (/** @type {NodeJS.ErrnoException} */ error) => {
      const why = error.code === "ENOENT" ? undefined : error.code === "ECONNREFUSED" ? "the socket is there, but nobody listens" : error.message;
      reject(new DaemonNotRunning(path, why));
    });
  });
  return lines(socket, socket);
}

/** An agent's side of its daemon. What is printed from here on goes to stderr, which is the agent's log. */
export function stdio() {
  const transport = lines(process.stdin, process.stdout);
  console.log = console.info = console.debug = console.error;
  return transport;
}
