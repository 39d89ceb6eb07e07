// What a client computes: ids of runs and partitions. See "Ids and partitions" in PROTOCOL.md.

import { createHash, randomBytes } from 'node:crypto';

const sha256 = (...parts) => parts.reduce((hash, part) => hash.update(part), createHash('sha256')).digest();
const bytesOf = (id) => Buffer.from(id.replaceAll('-', ''), 'hex');
const idOf = (bytes) => bytes.toString('hex').replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5');

export const tagOf = (runId) => parseInt(runId.slice(-4), 16);

export const partitionOfRun = (runId, partitions) => tagOf(runId) % partitions;

// The scope is tag, name or deployment.
export function partitionOfLimit(scope, key, partitions) {
  return sha256(scope === 'tag' ? key : `${scope}:${key}`).readUInt16BE(0) % partitions;
}

// A new id, which ends like the parent's where there is one.
export function newRunId(parentId = null) {
  const micro = Math.round((performance.timeOrigin + performance.now()) * 1000);
  const below = Math.floor(((micro % 1000) * 4096) / 1000);
  return runIdOf(Math.floor(micro / 1000), below, randomBytes(8), parentId === null ? null : tagOf(parentId));
}

// The UUID of version 7 of these parts; without a tag, the random bytes have one.
export function runIdOf(milliseconds, below, random, tag) {
  const id = Buffer.concat([Buffer.alloc(8), random]);
  id.writeUIntBE(milliseconds, 0, 6);
  id.writeUInt16BE(0x7000 | below, 6);
  id[8] = (id[8] & 0x3f) | 0x80;
  if (tag !== null) id.writeUInt16BE(tag, 14);
  return idOf(id);
}

// The id that an idempotency key always makes.
export function idFromKey(key, parentId = null) {
  const parent = parentId === null ? Buffer.alloc(0) : bytesOf(parentId);
  const id = sha256(parent, key).subarray(0, 16);
  id[6] = (id[6] & 0x0f) | 0x80;
  id[8] = (id[8] & 0x3f) | 0x80;
  parent.subarray(14).copy(id, 14);
  return idOf(id);
}
