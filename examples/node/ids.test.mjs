// The test vectors of the protocol.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import test from 'node:test';
import { idFromKey, newRunId, partitionOfLimit, partitionOfRun, runIdOf, tagOf } from './ids.mjs';

const vectors = JSON.parse(readFileSync(new URL('../../protocol/vectors.json', import.meta.url), 'utf8'));

test('partitions of runs', () => {
  for (const { run_id, tree_tag, partitions } of vectors.partition_of_a_run) {
    assert.equal(tagOf(run_id), tree_tag);
    for (const [count, partition] of Object.entries(partitions)) assert.equal(partitionOfRun(run_id, Number(count)), partition);
  }
});

test('partitions of limits', () => {
  for (const { scope, key, partitions } of vectors.partition_of_a_limit) {
    for (const [count, partition] of Object.entries(partitions)) assert.equal(partitionOfLimit(scope, key, Number(count)), partition);
  }
});

test('ids from idempotency keys', () => {
  for (const { idempotency_key, parent_id, run_id } of vectors.id_from_an_idempotency_key) {
    assert.equal(idFromKey(idempotency_key, parent_id), run_id);
  }
});

test('new ids', () => {
  for (const { milliseconds, sub_millisecond, random, tree_tag, run_id } of vectors.new_run_id) {
    assert.equal(runIdOf(milliseconds, sub_millisecond, Buffer.from(random, 'hex'), tree_tag), run_id);
  }
  const parent = newRunId();
  assert.equal(tagOf(newRunId(parent)), tagOf(parent));
  assert.match(parent, /^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
});
