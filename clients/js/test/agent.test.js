import assert from "node:assert/strict";
import { test } from "node:test";

import { RunFailed, connect } from "../src/index.js";
import { daemon, noDaemon } from "./daemon.js";

const options = { skip: noDaemon, timeout: 120_000 };
const AGENT = new URL("../src/agent.js", import.meta.url).pathname;

/** @param {any} t @param {string} code @param {object} [more] */
async function agent(t, code, more = {}) {
  const d = await daemon(t);
  const client = await connect(d.socket);
  t.after(() => client.close());
  const command = [process.execPath, "--input-type=module", "-e", `import { Agent } from "${AGENT}";\nconst agent = new Agent("a");\n${code}\nawait agent.serve();`];
  await client.agents.define({ spec: { name: "a", kind: "native", command, ...more } });
  return { d, client };
}

test("it answers, says, thinks, logs and fails", options, async (t) => {
  const { client } = await agent(t, `
    agent.run(async (run) => {
      console.log("this goes to the log");
      if (run.text === "fail") throw new Error("as asked");
      if (run.text === "return") return { options: run.options };
      await run.think("hm");
      await run.log("info", "noted");
      await run.say("you said ");
      await run.say(run.text);
    });`, { options: { depth: 3 } });
  const answer = client.ask("a", "hello");
  assert.equal(await answer.text(), "you said hello");
  assert.deepEqual(answer.run?.items.map((item) => [item.type, item.status]), [["thought", "completed"], ["log", "completed"], ["message", "completed"]]);
  await assert.rejects(client.ask("a", "fail").text(), (error) => error instanceof RunFailed && /as asked/.test(error.message));
  const { run_id } = await client.runs.start({ agent: "a", input: "return" });
  assert.deepEqual((await client.runs.wait({ run_id })).output, { options: { depth: 3 } });
  const { lines } = await client.agents.logs({ name: "a" });
  assert(lines.some((line) => line.text === "this goes to the log"));
});

test("a conversation is one handler, alive between its messages and rebuilt after a restart", options, async (t) => {
  const { client } = await agent(t, `
    agent.session(async (session) => {
      let heard = session.history.filter((turn) => turn.role === "user").length;
      for await (const message of session) {
        heard += 1;
        if (message.text === "fail") throw new Error("as asked");
        await message.reply("message " + heard);
      }
    });`);
  const { session_id } = await client.sessions.create({ agent: "a" });
  const ask = (/** @type {string} */ text) => client.ask("a", text, { session_id }).text();
  assert.equal(await ask("one"), "message 1");
  assert.equal(await ask("two"), "message 2");
  await assert.rejects(ask("fail"), /as asked/);
  assert.match(await ask("again"), /message [34]/);
  await client.agents.restart({ name: "a" });
  assert.match(await ask("after"), /message [456]/);
});

test("a cancelled run ends at once, also where the handler hears no signal, and the agent lives on", options, async (t) => {
  const { client } = await agent(t, `
    agent.run(async (run) => {
      await run.say("begun");
      if (run.text === "wait") await new Promise((wake) => setTimeout(wake, 1e9));
    });`);
  const answer = client.ask("a", "wait");
  await assert.rejects(async () => {
    for await (const piece of answer) if (piece) await answer.cancel();
  }, RunFailed);
  assert.equal(answer.run?.status, "cancelled");
  assert.equal(await client.ask("a", "go").text(), "begun");
  assert.equal((await client.agents.get({ name: "a" })).restarts, 0);
});

test("it calls the daemon within its grants, and stops when it is told", options, async (t) => {
  const { client } = await agent(t, `
    agent.run(async (run) => {
      if (run.text === "memory") {
        await run.client.memory.add({ namespace: "agent:a", text: "the kettle is blue" });
        return (await run.client.memory.search({ query: "kettle" })).items[0].text;
      }
      await run.client.tokens.create({ name: "x", scopes: ["admin"] });
    });`);
  assert.equal(await client.ask("a", "memory").text(), "the kettle is blue");
  await assert.rejects(client.ask("a", "token").text(), RunFailed);
  assert.equal((await client.agents.stop({ name: "a" })).state, "inactive");
});

test("a tool it brings", options, async (t) => {
  const schema = JSON.stringify({ type: "object", properties: { text: { type: "string" } }, required: ["text"] });
  const { client } = await agent(t, `
    agent.run(async (run) => run.text);
    agent.tool("shout", "In capitals.", ${schema}, ({ text }) => text.toUpperCase());
    agent.tool("count", "Its length.", ${schema}, ({ text }) => { if (!text) throw new Error("nothing"); return text.length; });`);
  await client.ask("a", "up").text();
  const shouted = await client.tools.call({ name: "a__shout", arguments: { text: "hey" } });
  assert.deepEqual([shouted.is_error, shouted.content], [false, [{ type: "text", text: "HEY" }]]);
  assert.deepEqual((await client.tools.call({ name: "a__count", arguments: { text: "hey" } })).structured_content, { result: 3 });
  assert.equal((await client.tools.call({ name: "a__count", arguments: { text: "" } })).is_error, true);
  await assert.rejects(client.tools.call({ name: "a__shout", arguments: {} }), /text/);
});
