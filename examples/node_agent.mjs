// An agent in JavaScript. `witsd agent add shout -- node examples/node_agent.mjs`, then `witsd ask shout hello`.
import { Agent } from "../clients/js/src/agent.js"; // from npm: "@witsd/client/agent"

const agent = new Agent("shout");

agent.run(async (run) => {
  for (const word of run.text.split(" ")) await run.say(`${word.toUpperCase()} `);
});

await agent.serve();
