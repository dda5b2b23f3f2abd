// A driver process of scripts/traffic.mjs: requests without end, several at a time, every line that comes back verified.
// Works when told 'work', comes to rest and looks for what it has left behind when told 'rest'.
// Arguments: index module, settings as JSON.
import { readdirSync, readFileSync, readlinkSync } from 'node:fs';

const [, , index, settingsJson] = process.argv;
const settings = JSON.parse(settingsJson);
const { SwDriver } = await import(index);
const inside = (path) => import(new URL(path, `file://${index}`).href);
const { RemoteWafer } = await inside('./wafer/remote_wafer.js');
const { WaferRuntime } = await inside('./wafer/wafer_runtime.js');
const { StampingRuntime } = await inside('./wafer/stamping_runtime.js');
const { seededRandom } = await inside('./common/random.js');

const COLUMN_TOKENS = 64;
const TENANTS = 3;
const LANES = 3;
/** A call that takes longer than its deadline by this is told of; timers are not exact. */
const WORTH_TELLING_MS = 50;

const nowMs = () => Number(process.hrtime.bigint() / 1000n) / 1000;
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

const totals = { calls: 0, columns: 0, misses: 0, lines: 0, foreign: 0, downs: 0, longestMs: 0 };
/** Calls that took longer than they may have: [what, deadlineMs, fromMs, toMs]. */
let late = [];
let stopping = false;
let working = Promise.resolve();

async function timed(name, deadlineMs, call) {
  const from = nowMs();
  try {
    return await call();
  } finally {
    const to = nowMs();
    totals.calls += 1;
    totals.longestMs = Math.max(totals.longestMs, to - from);
    if (to - from > deadlineMs + WORTH_TELLING_MS && late.length < 1000) late.push([name, deadlineMs, from, to]);
  }
}

/** Columns that prompts of a tenant share, and a rest of their own. */
function promptOf(random) {
  const prefix = Math.floor(random() * 3);
  const rest = Math.floor(random() * 8);
  const columns = 8 + Math.floor(random() * 16);
  return Uint32Array.from({ length: columns * COLUMN_TOKENS + 5 }, (_, at) =>
    Math.imul(at + 1, at < 6 * COLUMN_TOKENS ? prefix + 77 : (prefix * 8 + rest + 1) * 2_654_435_761),
  );
}

async function connect() {
  const { daemons, striping, bytesPerToken, capacityColumns, deadlineMs, checksums } = settings;
  const wafer = settings.wafer ? await RemoteWafer.connect(settings.wafer, { deadlineMs: 2_000 }) : undefined;
  try {
    const driver = await SwDriver.connect({
      daemons,
      striping,
      model: { id: 'traffic', revision: '1', dtype: 'stamp', layout: 'line64', bytesPerToken },
      capacityColumns,
      deadlineMs,
      connectDeadlineMs: 2_000,
      ringEntries: 256,
      placeBytes: 2 ** 20,
      checksums,
      lazy: true,
      ...(wafer ? { carrier: wafer.carrier } : {}),
    });
    driver.on('down', () => {
      totals.downs += 1;
    });
    const columnBytes = bytesPerToken.reduce((sum, bytes) => sum + bytes * COLUMN_TOKENS, 0);
    const runtime = wafer ? new WaferRuntime(wafer, COLUMN_TOKENS, columnBytes) : new StampingRuntime(COLUMN_TOKENS);
    return { driver, runtime, wafer };
  } catch (thrown) {
    await wafer?.close();
    throw thrown;
  }
}

/** Damages what it stores, once in a while: to show that it would be seen. */
function withCanary(source) {
  if (!settings.canary || !('write' in source)) return source;
  return {
    write(column, pieces) {
      const had = source.write(column, pieces);
      if (column.generation % 100 === 99) pieces[0][12] ^= 1;
      return had;
    },
  };
}

/** One lane of requests. Ends when it is to stop, or when the wafer has gone with the memory that it works in. */
async function serve({ driver, runtime }, random, state) {
  while (!stopping && !state.lost) {
    const isolationId = `tenant ${Math.floor(random() * TENANTS)}`;
    const tokens = promptOf(random);
    const deadlineMs = random() < 0.1 ? 50 : settings.deadlineMs;
    const request = runtime.request(isolationId, tokens);
    const sequence = driver.openSequence({ isolationId });
    const hit = await timed('match', 0, () => sequence.match(tokens));
    try {
      const { columns, quiet } = await timed('refill', deadlineMs, () => hit.refill(request.sink, { deadlineMs }));
      await request.accept(columns, quiet);
      totals.columns += columns;
      totals.misses += hit.columns - columns;
      hit.release();
      await request.compute();
      const source = withCanary(request.source);
      const { stored } = await timed('evict', deadlineMs, () => sequence.evict(source, { deadlineMs }));
      if (columns + stored === 0) await pause(5);
    } catch (thrown) {
      // The wafer has gone, or stands still for too long.
      if (!settings.wafer) throw thrown;
      state.lost = true;
    }
    hit.release();
    request.end();
    sequence.close();
    if (random() < 0.01) await timed('forget', settings.deadlineMs, () => driver.forget({ isolationId }));
    await new Promise((resolve) => setImmediate(resolve));
  }
}

let rounds = 0;

async function work() {
  while (!stopping) {
    let world;
    try {
      world = await connect();
    } catch {
      // No wafer, or it works for another one still: a driver over shards alone connects lazily.
      await pause(20);
      continue;
    }
    const state = { lost: false };
    const before = { lines: totals.lines, foreign: totals.foreign };
    const count = setInterval(() => {
      totals.lines = before.lines + world.runtime.stats.linesVerified;
      totals.foreign = before.foreign + world.runtime.stats.mismatches;
    }, 50);
    rounds += 1;
    const lanes = Array.from({ length: LANES }, (_, lane) =>
      serve(world, seededRandom(settings.seed * 1000 + rounds * 10 + lane), state),
    );
    await Promise.all(lanes);
    clearInterval(count);
    totals.lines = before.lines + world.runtime.stats.linesVerified;
    totals.foreign = before.foreign + world.runtime.stats.mismatches;
    await world.driver.close();
    await world.wafer?.close();
  }
}

/** What this process has open, by kind, and how many of our memory objects it has mapped. */
function census() {
  const kinds = {};
  for (const fd of readdirSync('/proc/self/fd')) {
    try {
      const kind = readlinkSync(`/proc/self/fd/${fd}`)
        .replace(/ \(deleted\)$/, '')
        .replace(/:\[?\d+\]?$/, '');
      kinds[kind] = (kinds[kind] ?? 0) + 1;
    } catch {
      // The one that the directory itself is read through.
    }
  }
  const mapped = readFileSync('/proc/self/maps', 'utf8')
    .split('\n')
    .filter((line) => line.includes('/memfd:kvss-'));
  return { ...kinds, 'mapped memory objects': mapped.length };
}

function report() {
  if (!process.connected) return;
  process.send({ totals, late });
  late = [];
}
const reporting = setInterval(report, 200);

process.on('message', async (command) => {
  if (command === 'work') {
    stopping = false;
    working = work();
  } else if (command === 'rest') {
    stopping = true;
    await working;
    // Views of slots hold their mapping until they are collected.
    for (let turn = 0; turn < 4; turn += 1) {
      globalThis.gc();
      await pause(5);
    }
    report();
    process.send({ resting: census() });
  } else {
    clearInterval(reporting);
    process.disconnect();
  }
});
process.on('disconnect', () => process.exit());
process.send({ ready: true });
