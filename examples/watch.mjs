// What happens, as it happens: `node examples/watch.mjs` follows every run; with AGENT and TEXT it asks first.
import { connect } from "../clients/js/src/index.js"; // from npm: "@witsd/client"

const [agent, text] = process.argv.slice(2);
const client = await connect();
if (agent) {
  for await (const piece of client.ask(agent, text ?? "What can you do?")) process.stdout.write(piece);
  process.stdout.write("\n");
  client.close();
} else {
  for await (const event of client.subscribe("run:*")) console.log(event.type, JSON.stringify(event.data ?? event));
}
