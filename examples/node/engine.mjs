// Asking the engine: one request after the other, each sent again until it has its answer.

import { setTimeout as pause } from 'node:timers/promises';
import { createClient, ErrorReply } from 'redis';

const ANSWER_MS = 30_000;
const MAX_BACKLOG = Number(process.env.STATEWRIGHT_MAX_BACKLOG ?? 10_000);
// Of what Redis refuses, this passes. Whatever is no refusal is a connection that is lost.
const PASSES = /^(OOM|READONLY|LOADING|MASTERDOWN|BUSY|MISCONF|NOREPLICAS)/;

export const say = (...words) => console.log(words.join(' '));

export class Engine {
  static async open(client) {
    const engine = new Engine();
    engine.namespace = process.env.STATEWRIGHT_NAMESPACE ?? 'statewright';
    engine.client = client;
    engine.replies = `${engine.namespace}:replies:${client}`;
    engine.last = '0-0';
    engine.redis = createClient({
      url: process.env.STATEWRIGHT_REDIS_URL ?? 'redis://127.0.0.1:6379/0',
      // A command fails when its connection is lost: it is repeated here, and not behind our back.
      disableOfflineQueue: true,
      socket: { connectTimeout: 5_000, socketTimeout: 10_000, reconnectStrategy: (tries) => Math.min(50 * 2 ** tries, 1_000) },
    });
    engine.redis.on('error', () => {});
    await engine.redis.connect();
    engine.partitions = Number(await engine.untilItPasses(() => engine.redis.get(`${engine.namespace}:partitions`)));
    return engine;
  }

  // Returns what `act` returns that is not null; does it again, in pauses that grow, while Redis fails.
  async untilItPasses(act) {
    for (let longest = 50; ; longest = Math.min(2 * longest, 1_000)) {
      try {
        const done = await act();
        if (done !== null) return done;
      } catch (error) {
        if (error instanceof ErrorReply && !PASSES.test(error.message)) throw error;
        say('again:', error.constructor.name);
      }
      await pause(longest * (0.5 + Math.random() / 2));
    }
  }

  // Returns the answer. The same id and the same bytes may be sent as often as it takes.
  async ask(partition, message, requestId) {
    const stream = `{${this.namespace}:${partition}}:proposals`;
    const entry = { id: requestId, reply_to: this.client, message: JSON.stringify(message) };
    return this.untilItPasses(async () => {
      if ((await this.redis.xLen(stream)) >= MAX_BACKLOG) {
        say('no room');
        return null;
      }
      await this.redis.xAdd(stream, '*', entry);
      const answer = await this.hear(requestId);
      if (answer?.code !== 'overloaded') return answer;
      say('overloaded');
      return null;
    });
  }

  // Returns the answer to a request, null when none comes in time. `parked` is no answer, but a sign of life.
  async hear(requestId) {
    const until = Date.now() + ANSWER_MS;
    let answer = null;
    while (answer === null && Date.now() < until) {
      const read = await this.redis.xRead({ key: this.replies, id: this.last }, { COUNT: 1000, BLOCK: 5000 });
      for (const { id, message } of read?.[0].messages ?? []) {
        this.last = id;
        const said = JSON.parse(message[requestId] ?? 'null');
        if (said?.type === 'parked') say('parked:', said.reason);
        else answer = said ?? answer;
      }
    }
    const [milliseconds, number] = this.last.split('-');
    await this.redis.xTrim(this.replies, 'MINID', `${milliseconds}-${BigInt(number) + 1n}`);
    return answer;
  }
}
