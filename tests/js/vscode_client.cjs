// A client as an editor would write it: vscode-jsonrpc, Content-Length headers, one Unix socket.
// Prints what it got as one JSON object; the test that runs it judges.
"use strict";

const net = require("node:net");
const rpc = require("vscode-jsonrpc/node");

async function refusal(promise) {
  try {
    return { answered: await promise };
  } catch (error) {
    return { code: error.code, data: error.data };
  }
}

async function main(path) {
  const socket = net.createConnection(path);
  await new Promise((resolve, reject) => socket.once("connect", resolve).once("error", reject));
  const connection = rpc.createMessageConnection(
    new rpc.SocketMessageReader(socket),
    new rpc.SocketMessageWriter(socket),
  );
  const events = [];
  let arrived;
  const created = new Promise((resolve) => (arrived = resolve));
  connection.onNotification("notifications/event", (event) => {
    events.push(event);
    if (event.type === "session.created") arrived();
  });
  connection.listen();

  const got = {};
  got.ping = await connection.sendRequest("ping", {});
  got.agents = await connection.sendRequest("agents/list", {});
  got.unknown_method = await refusal(connection.sendRequest("no/such", {}));
  got.invalid_params = await refusal(connection.sendRequest("agents/get", { name: 7 }));
  got.not_found = await refusal(connection.sendRequest("agents/get", { name: "x-nowhere" }));

  got.subscription = await connection.sendRequest("events/subscribe", { streams: ["session:*"] });
  got.session = await connection.sendRequest("sessions/create", { agent: "assistant", title: "Grüße 𝄞" });
  await created;
  got.events = events;

  // vscode-jsonrpc cancels with $/cancelRequest, which this protocol does not know: it must be ignored.
  const source = new rpc.CancellationTokenSource();
  const last = connection.sendRequest("ping", {}, source.token);
  source.cancel();
  got.after_foreign_notification = await last;

  connection.dispose();
  socket.end();
  process.stdout.write(JSON.stringify(got));
}

main(process.argv[2]).catch((error) => {
  process.stderr.write(`${error.stack}\n`);
  process.exit(1);
});
