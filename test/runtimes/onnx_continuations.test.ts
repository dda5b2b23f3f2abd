import { afterAll, beforeAll, expect, test } from 'vitest';
import type { OnnxDecoder } from '../../src/runtimes/onnx/index.js';
import { pause, Scratch, type TestDaemon, until } from '../e2e/support.js';
import { type TinyModel, TinyModels } from './demo_models.js';
import { joined, openDecoder, startDaemon, tokensOf } from './onnx_support.js';
import { PlainDecoder } from './plain_decoder.js';

const EFFORT = Number(process.env.KVSS_TEST_EFFORT ?? 1);
/** A share of the 200 prompts; all of them with an effort of 5 and more, which also says what has happened. */
const CONVERSATIONS = Math.min(50, Math.ceil(10 * EFFORT));
const tell = EFFORT > 1 ? console.log : () => {};
const TURNS = 4;
const ANSWER_TOKENS = 24;
const TENANTS = 3;
/** Conversations that go on at the same time. */
const AT_ONCE = 5;

interface Turn {
  readonly prompt: Uint32Array;
  readonly answer: readonly number[];
}
interface Conversation {
  readonly tenant: string;
  readonly turns: readonly Turn[];
}

const scratch = new Scratch();
let tiny: TinyModel;
let conversations: Conversation[];
beforeAll(async () => {
  tiny = await new TinyModels(scratch).make({ attention: 'fused' });
  const plain = await PlainDecoder.load(tiny.model);
  conversations = [];
  for (let index = 0; index < CONVERSATIONS; index += 1) {
    const tenant = index % TENANTS;
    // What the tenant's prompts begin with, and what the user types.
    let prompt = joined(tokensOf(10_000 + tenant, 150), tokensOf(index, 30 + (index % 7) * 9));
    const turns: Turn[] = [];
    for (let turn = 0; turn < TURNS; turn += 1) {
      const answer = await plain.continuation(prompt, ANSWER_TOKENS, 512);
      turns.push({ prompt, answer });
      prompt = joined(prompt, answer, tokensOf(20_000 + index * TURNS + turn, 20 + turn * 15));
    }
    conversations.push({ tenant: `tenant ${tenant}`, turns });
  }
  await plain.release();
}, 120_000);
afterAll(() => scratch[Symbol.dispose]());

interface Outcome {
  prompts: number;
  /** Prompts of which something was cached. */
  hits: number;
  cachedTokens: number;
  missed: Record<string, number>;
}

/** Has all conversations, some at a time, and checks every token. */
async function converse(decoder: OnnxDecoder, betweenTurns: () => Promise<unknown> = async () => {}): Promise<Outcome> {
  const outcome: Outcome = { prompts: 0, hits: 0, cachedTokens: 0, missed: {} };
  const waiting = [...conversations];
  const work = Array.from({ length: AT_ONCE }, async () => {
    for (let next = waiting.shift(); next; next = waiting.shift()) {
      const { tenant, turns } = next;
      for (const { prompt, answer } of turns) {
        const generation = decoder.generate(prompt, { isolationId: tenant, maxTokens: ANSWER_TOKENS });
        const tokens: number[] = [];
        for await (const token of generation) tokens.push(token);
        expect(tokens).toEqual(answer);
        outcome.prompts += 1;
        outcome.cachedTokens += generation.cachedTokens;
        if (generation.cachedTokens > 0) outcome.hits += 1;
        for (const [cause, missed] of Object.entries(generation.missed)) {
          outcome.missed[cause] = (outcome.missed[cause] ?? 0) + missed;
        }
        await betweenTurns();
      }
    }
  });
  await Promise.all(work);
  expect(outcome.prompts).toBe(CONVERSATIONS * TURNS);
  return outcome;
}

const missedFor = ({ missed }: Outcome, cause: string) => missed[cause] ?? 0;
/** Later turns find what the ones before have computed. */
const MOST_PROMPTS = CONVERSATIONS * (TURNS - 1);

test('answers are those without a cache: with room for all', async () => {
  await using daemon = await startDaemon(scratch, { name: 'roomy', budget: '512MiB' });
  await using decoder = await openDecoder(tiny, [daemon.socket], { driver: { capacityColumns: 2000 } });
  const outcome = await converse(decoder);
  expect(outcome.hits).toBeGreaterThanOrEqual(MOST_PROMPTS);
  expect([missedFor(outcome, 'evicted'), missedFor(outcome, 'shardDown')]).toEqual([0, 0]);
  tell('with room for all:', JSON.stringify(outcome));
});

test('answers are those without a cache: with room for a fraction of them', async () => {
  await using daemon = await startDaemon(scratch, { name: 'narrow' });
  await using decoder = await openDecoder(tiny, [daemon.socket], { driver: { capacityColumns: 10 } });
  const outcome = await converse(decoder);
  const { columnsDeleted } = decoder.driver.stats;
  expect(columnsDeleted).toBeGreaterThan(CONVERSATIONS);
  expect(outcome.hits).toBeGreaterThan(0);
  expect(missedFor(outcome, 'evicted')).toBeGreaterThan(0);
  tell('under pressure:', JSON.stringify({ ...outcome, columnsDeleted }));
});

test('answers are those without a cache: with a daemon that is killed again and again', async () => {
  let daemon: TestDaemon = await startDaemon(scratch, { name: 'mortal' });
  const decoder = await openDecoder(tiny, [daemon.socket], { driver: { capacityColumns: 300, deadlineMs: 3_000 } });
  let [deaths, over] = [0, false];
  decoder.driver.on('down', () => {
    deaths += 1;
  });
  const dying = (async () => {
    while (!over) {
      // As long as it is there and has something to lose.
      await until(() => over || (decoder.driver.usable && decoder.driver.columns > 20));
      await pause(300 + ((deaths * 700) % 1200));
      daemon.kill('SIGKILL');
      await daemon.finished;
      daemon = await startDaemon(scratch, { name: 'mortal' });
    }
  })();
  // Prompts take milliseconds, daemons a second to come back: some wait for it, so that there are hits as well.
  let turns = 0;
  const outcome = await converse(decoder, async () => {
    turns += 1;
    if (turns % 6 === 0) await until(() => decoder.driver.usable);
    else await pause(60);
  });
  over = true;
  await dying;
  expect(deaths).toBeGreaterThanOrEqual(2);
  expect(outcome.hits).toBeGreaterThan(0);
  expect(missedFor(outcome, 'shardDown')).toBeGreaterThan(0);
  tell('with a daemon that is killed:', JSON.stringify({ ...outcome, deaths }));
  await decoder.close();
  await daemon[Symbol.asyncDispose]();
}, 120_000);
