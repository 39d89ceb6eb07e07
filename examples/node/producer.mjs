// A producer: a flow run with some task runs, each RUNNING and then COMPLETED.
//
//     node producer.mjs nightly/2030-01-01 3
//
// Started again with the same key, it goes on where it was: ids are made of the key, and what is asked again under the
// same id has its one answer already.

import { setTimeout as pause } from 'node:timers/promises';
import { Engine, say } from './engine.mjs';
import { idFromKey, partitionOfRun } from './ids.mjs';

const [key, tasks] = process.argv.slice(2);
const engine = await Engine.open(`producer-${idFromKey(key)}`);

async function ask(message, requestKey) {
  const partition = partitionOfRun(message.run_id, engine.partitions);
  const answer = await engine.ask(partition, message, idFromKey(requestKey, message.run_id));
  if (answer.type === 'error') throw new Error(`${answer.code} (${answer.field}): ${answer.message}`);
  return answer;
}

async function create(message) {
  const { run } = await ask(message, 'create');
  say('created', run.kind, run.name);
  return run.id;
}

// Returns the verdict. Whoever is told to wait proposes again under another id.
async function propose(runId, state) {
  const message = { type: 'propose', run_id: runId, state, on_wait: 'park', park_seconds: 600 };
  for (let attempt = 0; ; attempt += 1) {
    const { verdict } = await ask(message, `${state.type} ${attempt}`);
    if (verdict.status === 'WAIT') {
      await pause(1000 * verdict.delay_seconds);
      continue;
    }
    say(verdict.status, verdict.state?.name, verdict.reason ?? '');
    return verdict;
  }
}

const flowRun = await create({ type: 'create_flow_run', run_id: idFromKey(key), name: 'nightly' });
await propose(flowRun, { type: 'RUNNING' });
for (let number = 0; number < Number(tasks); number += 1) {
  const name = `load ${number}`;
  const taskRun = { type: 'create_task_run', run_id: idFromKey(name, flowRun), name, flow_run_id: flowRun };
  const taskId = await create({ ...taskRun, tags: ['database'] });
  if ((await propose(taskId, { type: 'RUNNING' })).status === 'ACCEPT') {
    await propose(taskId, { type: 'COMPLETED', data: { rows: 1200 } });
  }
}
await propose(flowRun, { type: 'COMPLETED' });
engine.redis.destroy();
