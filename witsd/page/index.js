// Says whether this tab is signed in: the cookie and the tab's secret together open the WebSocket.
"use strict";
const status = document.getElementById("status");
const secret = sessionStorage.getItem("witsd.tab");

function signedOut(why) {
  status.textContent = why;
  document.getElementById("enter").hidden = false;
}

if (secret === null) {
  signedOut("This tab is not signed in.");
} else {
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  const socket = new WebSocket(`${scheme}://${location.host}/ws`);
  socket.addEventListener("open", () => {
    const params = { protocol_version: "1", client_info: { name: "page", version: "" }, token: secret };
    socket.send(JSON.stringify({ jsonrpc: "2.0", id: 1, method: "initialize", params }));
  });
  socket.addEventListener("message", (message) => {
    const answer = JSON.parse(message.data);
    if (answer.id !== 1) return;
    if (answer.error) {
      sessionStorage.removeItem("witsd.tab");
      signedOut("This tab is no longer signed in.");
    } else {
      status.textContent = `You are signed in as ${answer.result.actor.label}.`;
    }
  });
  socket.addEventListener("close", () => {
    if (!status.textContent.startsWith("This tab")) status.textContent = "The connection ended. Reload to try again.";
  });
}
