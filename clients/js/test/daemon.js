/** A real daemon in a folder of its own, for tests. */

import { spawn } from "node:child_process";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("../../..", import.meta.url));
const python = process.env.WITSD_PYTHON ?? join(root, ".venv/bin/python");

/** Why there can be no daemon here, or false. */
export const noDaemon = existsSync(python) ? false : `there is no ${python}: run \`make .venv/.dev\` first`;

export class Daemon {
  home = mkdtempSync(join(tmpdir(), "witsd-js-"));
  socket = join(this.home, "witsd.sock");
  /** @type {import("node:child_process").ChildProcess | null} */ process = null;
  http = "";
  output = "";

  async start() {
    const child = spawn(python, ["-m", "witsd.daemon"], {
      cwd: this.home,
      env: {
        ...process.env,
        HOME: this.home,
        WITSD_HOME: this.home,
        WITSD_LISTEN_HTTP: this.http.slice("http://".length) || "127.0.0.1:0",
        PYTHONPATH: [root, join(root, "clients/python")].join(":"),
        NOTIFY_SOCKET: undefined,
      },
      stdio: ["ignore", "pipe", "pipe"],
    });
    this.process = child;
    let said = "";
    await new Promise((resolve, reject) => {
      /** @param {Buffer} chunk */
      const hear = (chunk) => {
        said += chunk;
        this.output += chunk;
        const found = /It listens on \S+ and (http:\/\/\S+)/.exec(said);
        if (found) {
          this.http = found[1];
          resolve(null);
        }
      };
      child.stdout?.on("data", hear);
      child.stderr?.on("data", hear);
      child.on("exit", (code) => reject(new Error(`the daemon ended with ${code}:\n${said}`)));
    });
  }

  get ws() {
    return `${this.http.replace("http", "ws")}/ws`;
  }

  /** @param {NodeJS.Signals} signal */
  async end(signal) {
    const child = this.process;
    if (!child || child.exitCode !== null || child.signalCode !== null) return;
    const gone = new Promise((resolve) => child.once("exit", resolve));
    child.kill(signal);
    await gone;
  }

  /** Stop it and remove its folder. */
  async [Symbol.asyncDispose]() {
    await this.end("SIGTERM");
    rmSync(this.home, { recursive: true, force: true });
  }
}

/** @param {{after: (work: () => Promise<void>) => void}} t  the test, after which it goes */
export async function daemon(t) {
  const one = new Daemon();
  t.after(() => one[Symbol.asyncDispose]());
  await one.start();
  return one;
}
