/** The protocol's test vectors against the declared types: whatever is valid on the wire has a type that takes it. */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

import { lines } from "../src/node.js";
import { PassThrough } from "node:stream";

const vectors = new URL("../../../protocol/vectors/", import.meta.url);
/** @param {string} name */
const read = (name) => JSON.parse(readFileSync(new URL(name, vectors), "utf8"));

test("the types take what a client may send, and not a wrong one", { timeout: 300_000 }, () => {
  const folder = mkdtempSync(fileURLToPath(new URL("./vectors-", import.meta.url)));
  try {
    let text = 'import type * as p from "../../src/protocol.js";\n// @ts-expect-error\nexport const wrong: p.RunIdParams = { run_id: 7 };\n';
    let count = 0;
    // Results leave out what has a default, which the daemon always writes: only what a client itself writes is complete.
    for (const group of ["params"]) {
      for (const [type, { valid }] of Object.entries(read(`${group}.json`).types)) {
        for (const { name, value } of /** @type {any[]} */ (valid)) {
          if (name === "a field of a newer version") continue; // readers ignore it, and TypeScript says so
          text += `export const v${count++}: p.${type} = ${JSON.stringify(value)};\n`;
        }
      }
    }
    assert(count > 100, `${count} vectors`);
    writeFileSync(join(folder, "vectors.ts"), text);
    const tsc = fileURLToPath(new URL("../node_modules/typescript/bin/tsc", import.meta.url));
    const options = ["--strict", "--noEmit", "--skipLibCheck", "--module", "nodenext", "--target", "es2023"];
    const { status, stdout } = spawnSync(process.execPath, [tsc, ...options, join(folder, "vectors.ts")], { encoding: "utf8" });
    assert.equal(status, 0, stdout.slice(0, 3000));
  } finally {
    rmSync(folder, { recursive: true });
  }
});

test("lines, in any chunking", async () => {
  for (const { name, in: input, messages } of read("framing.json").framing) {
    if (/header|length|body|head|too long/.test(name)) continue; // the client speaks lines, and takes 64 MiB of one
    for (const size of [1, 3, 1000]) {
      const stream = new PassThrough();
      const transport = lines(stream, new PassThrough());
      /** @type {string[]} */ const got = [];
      transport.onMessage = (text) => got.push(text);
      const over = new Promise((resolve) => (transport.onClose = resolve));
      const bytes = Buffer.from(input);
      for (let at = 0; at < bytes.length; at += size) stream.write(bytes.subarray(at, at + size));
      stream.end();
      await over;
      assert.deepEqual(got, messages, `${name}, ${size} bytes at a time`);
    }
  }
});
