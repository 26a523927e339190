import assert from "node:assert/strict";
import { test } from "node:test";

import { Cursor } from "../src/cursor.js";

/** @typedef {import("../src/protocol.js").Event} Event */

/** Numbers that look random and are the same each time. @param {number} seed */
function chance(seed) {
  let state = seed >>> 0;
  return (/** @type {number} */ below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

/** As the daemon keeps it: streams by name are replayed one after the other, patterns by position. @param {string[]} streams */
function journal(streams) {
  /** @type {Record<string, number>} */ const seqs = {};
  const events = streams.map((stream, index) => {
    seqs[stream] = (seqs[stream] ?? 0) + 1;
    return { stream, time: "", type: "x", data: null, seq: seqs[stream], pos: index + 1 };
  });
  /**
   * @param {string[]} patterns
   * @param {Record<string, number> | null} since
   * @param {number} end
   */
  const subscribe = (patterns, since, end) => {
    const past = events.slice(0, end);
    const exact = !patterns.includes("*");
    /** @type {Event[]} */ let replay = [];
    if (since !== null && "pos" in since) {
      replay = past.filter((e) => e.pos > since.pos);
      if (exact) replay = patterns.flatMap((name) => replay.filter((e) => e.stream === name));
    } else if (since !== null) {
      replay = Object.entries(since).flatMap(([name, seq]) => past.filter((e) => e.stream === name && e.seq > seq));
    }
    const last = Object.fromEntries(patterns.map((name) => [name, Math.max(0, ...past.filter((e) => e.stream === name).map((e) => e.seq))]));
    const cursors = exact ? last : Object.fromEntries(Object.entries(since ?? {}).filter(([name]) => name !== "pos"));
    const live = events.slice(end).filter((e) => !exact || patterns.includes(e.stream));
    return { result: { subscription_id: "s", cursors, pos: end, resync: false, epoch: "e" }, coming: [...replay, ...live] };
  };
  return { events, subscribe };
}

test("any drops give each event once and in order", () => {
  for (let seed = 0; seed < 2000; seed++) {
    const pick = chance(seed);
    const { events, subscribe } = journal(Array.from({ length: pick(41) }, () => "abc"[pick(3)]));
    const patterns = [["*"], ["a"], ["a", "b"], ["a", "b", "c"]][pick(4)];
    const names = patterns[0] === "*" ? ["a", "b", "c"] : patterns;
    const cursor = new Cursor(patterns, pick(2) ? { pos: 0 } : Object.fromEntries(names.map((name) => [name, 0])));
    /** @type {Event[]} */ const got = [];
    let end = 0;
    let through = false;
    for (let n = 0; n < 200 && !through; n++) {
      end += pick(events.length - end + 1);
      const since = cursor.since();
      const { result, coming } = subscribe(patterns, since, end);
      cursor.begin(result, since);
      const cut = pick(5) ? pick(coming.length + 1) : coming.length;
      for (const event of coming.slice(0, cut)) {
        const verdict = cursor.judge(event);
        assert.notEqual(verdict, "gap");
        if (verdict === "next") {
          got.push(event);
          end = Math.max(end, event.pos ?? 0);
        }
      }
      through = cut === coming.length;
    }
    assert(through, `seed ${seed}: it never came through`);
    for (const name of names) {
      const seqs = (/** @type {Event[]} */ list) => list.filter((e) => e.stream === name).map((e) => e.seq);
      assert.deepEqual(seqs(got), seqs(events), `seed ${seed}, stream ${name}`);
    }
  }
});

test("a range goes on exactly when it meets the cursor", () => {
  for (let last = 0; last <= 8; last++) {
    for (let first = 1; first <= 10; first++) {
      for (let seq = first; seq <= first + 3; seq++) {
        const cursor = new Cursor(["a"], { a: last });
        cursor.begin({ subscription_id: "s", cursors: { a: 40 }, pos: 100, resync: false, epoch: "e" }, { a: last });
        const verdict = cursor.judge({ stream: "a", time: "", type: "x", data: null, seq, pos: 50, first_seq: first });
        assert.equal(verdict, seq <= last ? "duplicate" : first <= last + 1 ? "next" : "gap");
      }
    }
  }
});

test("memory of streams is bounded", () => {
  const cursor = new Cursor(["*"], null, { maxStreams: 10 });
  cursor.begin({ subscription_id: "s", cursors: {}, pos: 0, resync: false, epoch: "e" }, null);
  const event = (/** @type {number} */ n) => ({ stream: `run:${n}`, time: "", type: "x", data: null, seq: 1, pos: n });
  for (let n = 1; n <= 100; n++) {
    assert.equal(cursor.judge(event(n)), "next");
    assert.equal(cursor.judge(event(n)), "duplicate");
  }
  assert.equal(Object.keys(cursor.last).length, 10);
  assert.equal(cursor.judge(event(1)), "duplicate");
});

test("logs go on from their seq, and not beside patterns", () => {
  assert.throws(() => new Cursor(["log:a", "run:*"], null), TypeError);
  const cursor = new Cursor(["log:a"], { "log:a": 3 });
  cursor.begin({ subscription_id: "s", cursors: {}, pos: 9, resync: false, epoch: "e" }, { "log:a": 3 });
  assert.equal(cursor.judge({ stream: "log:a", time: "", type: "x", data: null, seq: 4 }), "next");
  assert.deepEqual(cursor.since(), { "log:a": 4 });
});
