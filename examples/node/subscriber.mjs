// A subscriber: tells each change of a state once and in order, and notices what is missing.
//
//     node subscriber.mjs positions.json
//
// It keeps its positions in the file and goes on there; without one, it begins with what is new.

import { randomUUID } from 'node:crypto';
import { existsSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { Engine, say } from './engine.mjs';

const kept = process.argv[2];
const engine = await Engine.open(`subscriber-${randomUUID()}`);
const streams = Array.from({ length: engine.partitions }, (_, partition) => `{${engine.namespace}:${partition}}:events`);
const positions = existsSync(kept) ? JSON.parse(readFileSync(kept, 'utf8')) : {};

// The last number that must have come before an event. A number has up to 19 digits; those that matter here fit.
function lastBefore(event) {
  const before = Number(event.sequence) - 1;
  return event.type === 'statewright.era.began' ? Math.min(before, event.data.went_back_to) : before;
}

function keep() {
  writeFileSync(`${kept}.new`, JSON.stringify(positions));
  renameSync(`${kept}.new`, kept);
}

function tell(partition, event) {
  if (lastBefore(event) > positions[partition]) say('missed', partition, positions[partition] + 1, lastBefore(event));
  if (Number(event.sequence) <= positions[partition]) return;
  positions[partition] = Number(event.sequence);
  const { data } = event;
  if (event.type === 'statewright.era.began') say('undone', partition, data.went_back_to + 1, data.undone_up_to);
  else say(event.id, event.type, data.resource.name);
}

async function page(partition, after) {
  const answer = await engine.ask(partition, { type: 'read_events', partition, after }, randomUUID());
  // Who may not ask for old events goes on behind the gap.
  return answer.type === 'events' ? answer : { events: [], up_to: after };
}

// Tells what the stream no longer has, as far as PostgreSQL has it.
async function readBack(partition, upTo) {
  for (let after = positions[partition]; after < upTo; ) {
    const { events, up_to } = await page(partition, after);
    for (const event of events) tell(partition, event);
    if (up_to <= after) break;
    after = up_to;
  }
}

// The stream ends before the position: asks whether what was told did happen.
async function lookBack(partition) {
  const position = positions[partition];
  const { up_to } = await page(partition, position);
  positions[partition] = Math.min(position, up_to);
  if (up_to < position) say('undone', partition, up_to + 1, position);
}

for (const [partition, stream] of streams.entries()) {
  const newest = await engine.untilItPasses(() => engine.redis.xRevRange(stream, '+', '-', { COUNT: 1 }));
  const endsWith = Number(newest[0]?.id.split('-')[0] ?? 0);
  positions[partition] ??= endsWith;
  if (endsWith < positions[partition]) await lookBack(partition);
}
keep();
say('listening');
for (;;) {
  const at = streams.map((key, partition) => ({ key, id: `${positions[partition]}-0` }));
  const read = await engine.untilItPasses(async () => (await engine.redis.xRead(at, { COUNT: 500, BLOCK: 5000 })) ?? []);
  for (const { name, messages } of read) {
    const partition = streams.indexOf(name);
    for (const { message } of messages) {
      const event = JSON.parse(message.event);
      await readBack(partition, lastBefore(event));
      tell(partition, event);
    }
  }
  keep();
}
