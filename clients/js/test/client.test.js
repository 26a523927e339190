import assert from "node:assert/strict";
import { createConnection, createServer } from "node:net";
import { join } from "node:path";
import { test } from "node:test";
import { WebSocket } from "ws";

import { ConnectionLost, DaemonNotRunning, NOT_FOUND, RunFailed, UNAUTHENTICATED, WitsdError, connect } from "../src/index.js";
import { socketPath } from "../src/node.js";
import { daemon, noDaemon } from "./daemon.js";

const options = { skip: noDaemon, timeout: 120_000 };

/** @param {import("./daemon.js").Daemon} d @param {string} name @param {string} code */
async function define(d, name, code) {
  const client = await connect(d.socket);
  const command = [process.execPath, "--input-type=module", "-e", code];
  await client.agents.define({ spec: { name, kind: "native", command } });
  client.close();
}

const AGENT = new URL("../src/agent.js", import.meta.url).pathname;
const COUNT = `
import { Agent } from "${AGENT}";
const agent = new Agent("count");
agent.run(async (run) => {
  for (let n = 1; n <= Number(run.text); n++) {
    await run.say(n + " ");
    await new Promise((wake) => setTimeout(wake, 5));
  }
});
await agent.serve();
`;
const numbers = (/** @type {number} */ n) => Array.from({ length: n }, (_, i) => `${i + 1} `).join("");

test("calls over the Unix socket, and errors by their code", options, async (t) => {
  const d = await daemon(t);
  const client = await connect(d.socket);
  t.after(() => client.close());
  assert.equal((await client.system.status()).pid, d.process?.pid);
  assert.deepEqual((await client.agents.list()).items.map((agent) => agent.name), ["assistant"]);
  await assert.rejects(client.agents.get({ name: "nobody" }), (error) => {
    assert(error instanceof WitsdError);
    assert.equal(error.code, NOT_FOUND);
    assert.deepEqual([error.data.kind, error.data.id, error.retryable], ["agent", "nobody", false]);
    return true;
  });
  assert.match(await client.ask("assistant", "What is 2 + 3?").text(), /5/);
});

test("over a WebSocket with a token; without one, and with a wrong one, it is refused", options, async (t) => {
  const d = await daemon(t);
  const own = await connect(d.socket);
  const { token } = await own.tokens.create({ name: "test", scopes: ["read", "chat"] });
  own.close();
  const client = await connect(d.ws, { token, WebSocket });
  t.after(() => client.close());
  assert.match(await client.ask("assistant", "What is 20 + 3?").text(), /23/);
  for (const wrong of [undefined, "wt_wrong"]) {
    const refused = await connect(d.ws, { token: wrong, WebSocket }).then((c) => c.agents.list(), (error) => error).catch((error) => error);
    assert.equal(refused.code, UNAUTHENTICATED);
  }
  await assert.rejects(connect(`${d.ws}?token=x`, { WebSocket }), /no secret/);
});

test("nobody there: what to do", options, async () => {
  await assert.rejects(connect("/nowhere/witsd.sock"), (error) => error instanceof DaemonNotRunning && /witsd up/.test(error.message));
  await assert.rejects(connect(`/tmp/${"x".repeat(120)}`), /107 bytes/);
});

test("where the socket is", () => {
  assert.equal(socketPath({ WITSD_HOME: "/w" }), "/w/witsd.sock");
  assert.equal(socketPath({ WITSD_HOME: "/w", WITSD_LISTEN_UNIX: "/run/x.sock" }), "/run/x.sock");
  assert.equal(socketPath({ HOME: "/h", XDG_RUNTIME_DIR: "/run/user/1" }), join("/run/user/1", "witsd/witsd.sock"));
});

test("a signal ends a call and the work in the daemon", options, async (t) => {
  const d = await daemon(t);
  await define(d, "count", COUNT);
  const client = await connect(d.socket);
  t.after(() => client.close());
  const { run_id } = await client.runs.start({ agent: "count", input: "100000" });
  const controller = new AbortController();
  const waiting = client.runs.wait({ run_id }, { signal: controller.signal });
  controller.abort(new Error("enough"));
  await assert.rejects(waiting, /enough/);
  await assert.rejects(client.runs.wait({ run_id }, { timeout_s: 0.05 }), /not answered within/);
  const run = await client.runs.cancel({ run_id });
  assert.equal(run.status, "cancelled");
  const failed = client.ask("count", "not a number");
  assert.equal(await failed.text(), "");
  const answer = client.ask("count", "100000");
  await assert.rejects(async () => {
    for await (const piece of answer) if (piece.includes("3")) await answer.cancel("enough");
  }, (error) => error instanceof RunFailed && error.run.status === "cancelled");
});

test("kill -9 of the daemon in the middle of a stream: no gap, no duplicate, and the run is interrupted", options, async (t) => {
  const d = await daemon(t);
  await define(d, "count", COUNT);
  /** @type {string[]} */ const states = [];
  const client = await connect(d.socket, { onState: (state) => states.push(state) });
  t.after(() => client.close());
  // Nothing but the client may be needed to keep a waiting reader alive.
  const collecting = setInterval(() => globalThis.gc?.(), 50);
  t.after(() => clearInterval(collecting));
  const { run_id } = await client.runs.start({ agent: "count", input: "100000" });
  const stream = `run:${run_id}`;
  let last = 0;
  let text = "";
  let killed = false;
  for await (const event of client.subscribe(stream, { since: { [stream]: 0 } })) {
    assert.notEqual(event.type, "resync");
    if (!("seq" in event) || event.seq === undefined) continue;
    assert((event.first_seq ?? event.seq) <= last + 1 && event.seq > last, `${event.first_seq}..${event.seq} after ${last}`);
    last = event.seq;
    if (event.type === "item.delta") text += event.data.text;
    if (!killed && text.length > 100) {
      killed = true;
      await d.end("SIGKILL");
      await d.start();
    }
    if (event.type === "run.interrupted") break;
  }
  assert(numbers(20_000).startsWith(text) && text.length > 100, text.slice(0, 80));
  assert.equal((await client.runs.get({ run_id })).status, "interrupted");
  assert.deepEqual(states.filter((state, n) => state !== states[n - 1]), ["connected", "connecting", "connected"]);
});

test("a proxy that cuts the socket again and again: the text comes once and whole", options, async (t) => {
  const d = await daemon(t);
  await define(d, "count", COUNT);
  let cuts = 0;
  const proxy = createServer((near) => {
    const far = createConnection(d.socket);
    near.pipe(far).pipe(near);
    for (const side of [near, far]) side.on("error", () => {});
    near.on("close", () => far.destroy());
    far.on("close", () => near.destroy());
    setTimeout(() => {
      cuts += 1;
      near.destroy();
    }, 300);
  });
  const path = join(d.home, "proxy.sock");
  await new Promise((resolve) => proxy.listen(path, () => resolve(null)));
  t.after(() => proxy.close());
  const own = await connect(d.socket);
  t.after(() => own.close());
  const client = await connect(path);
  t.after(() => client.close());
  const { run_id } = await own.runs.start({ agent: "count", input: "400" });
  let text = "";
  for await (const event of client.streamRun(run_id)) if (event.type === "item.delta") text += /** @type {any} */ (event).data.text;
  assert.equal(text, numbers(400));
  assert(cuts >= 3, `${cuts} cuts`);
});

test("a subscription whose reader is slow gets everything all the same", options, async (t) => {
  const d = await daemon(t);
  const client = await connect(d.socket);
  t.after(() => client.close());
  const session = await client.sessions.create({ agent: "assistant", title: "0" });
  const events = client.subscribe(`session:${session.session_id}`);
  await events.start();
  const many = 6000; // more than a subscription holds
  for (let n = 1; n <= many; n += 100) {
    await Promise.all(Array.from({ length: 100 }, (_, i) => client.sessions.update({ session_id: session.session_id, title: String(n + i) })));
  }
  let seen = 0;
  for await (const event of events) {
    if (event.type === "session.updated") seen += 1;
    if (seen === many) break;
  }
  assert.equal(seen, many);
});

test("calls after close", options, async (t) => {
  const d = await daemon(t);
  const client = await connect(d.socket);
  const waiting = client.subscribe("system")[Symbol.asyncIterator]().next();
  client.close();
  await assert.rejects(client.agents.list(), ConnectionLost);
  await assert.rejects(waiting, ConnectionLost);
});
