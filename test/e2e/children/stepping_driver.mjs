// A driver process for test/e2e/steps.test.ts: takes a prompt of each of two tenants through evict, refill, overwrite
// and delete each time it is told to, and says what came of it. With the addon that counts steps it counts its own too.
// Arguments: index module, daemon, bytes per token, 'connected' or 'connecting': whether it connects once or for each
// round, and a wafer or ''.
import { createRequire } from 'node:module';

const [, , index, daemon, bytesList, mode, waferAddress] = process.argv;
const { SwDriver } = await import(index);
const { RemoteWafer } = await import(new URL('./wafer/remote_wafer.js', `file://${index}`).href);
const { WaferRuntime } = await import(new URL('./wafer/wafer_runtime.js', `file://${index}`).href);
const { StampingRuntime } = await import(new URL('./wafer/stamping_runtime.js', `file://${index}`).href);
const { reachStep = () => {} } = createRequire(index)('../build/native/kvss.node');

const DEADLINE_MS = 300;
const COLUMN_TOKENS = 64;
const bytesPerToken = bytesList.split(',').map(Number);
const columnBytes = bytesPerToken.reduce((sum, bytes) => sum + bytes * COLUMN_TOKENS, 0);
const model = { id: 'test', revision: '1', dtype: 'stamp', layout: 'line64', bytesPerToken };

async function connect() {
  const wafer = waferAddress ? await RemoteWafer.connect(waferAddress, { deadlineMs: 2_000 }) : undefined;
  const driver = await SwDriver.connect({
    daemons: [daemon],
    model,
    // Less than the two prompts have: one overwrites the other.
    capacityColumns: 3,
    deadlineMs: DEADLINE_MS,
    connectDeadlineMs: 2_000,
    lazy: mode === 'connected',
    ...(wafer ? { carrier: wafer.carrier } : {}),
  }).catch(async (thrown) => {
    await wafer?.close();
    throw thrown;
  });
  const runtime = wafer ? new WaferRuntime(wafer, COLUMN_TOKENS, columnBytes) : new StampingRuntime(COLUMN_TOKENS);
  return { driver, runtime, wafer };
}

/** The runtime's own steps, in the middle of a column. */
function stepping(source) {
  if (!('write' in source)) return source;
  return {
    write(column, pieces) {
      reachStep('slot about to be written');
      source.write(column, pieces);
      reachStep('slots written');
      return true;
    },
  };
}

async function round({ driver, runtime }) {
  const report = { stored: 0, refilled: 0, forgotten: 0, worstMs: 0, errors: [] };
  const timed = async (call) => {
    const from = performance.now();
    try {
      return await call();
    } finally {
      report.worstMs = Math.max(report.worstMs, performance.now() - from);
    }
  };
  for (const tenant of ['acme', 'globex', 'acme', 'acme']) {
    const tokens = Uint32Array.from({ length: COLUMN_TOKENS * 2 }, (_, at) => Math.imul(at + 1, 2_654_435_761));
    const sequence = driver.openSequence({ isolationId: tenant });
    const request = runtime.request(tenant, tokens);
    // A wafer that has gone has taken the runtime's memory along; the calls of the driver end all the same.
    const ofTheWafer = async (call) => call().catch(({ code }) => void report.errors.push(code));
    const hit = sequence.match(tokens);
    const { columns, quiet } = await timed(() => hit.refill(request.sink));
    await ofTheWafer(async () => request.accept(columns, quiet));
    hit.release();
    await ofTheWafer(async () => request.compute());
    const { stored } = await timed(() => sequence.evict(stepping(request.source)));
    request.end();
    sequence.close();
    report.stored += stored;
    report.refilled += columns;
  }
  for (const isolationId of ['acme', 'globex']) report.forgotten += await timed(() => driver.forget({ isolationId }));
  return { ...report, ...runtime.stats };
}

let abandoned = false;
const connected = mode === 'connected' ? await connect() : undefined;

/** Until there is a daemon, or will be none. */
async function usable({ driver }) {
  while (!driver.usable && !abandoned) await new Promise((resolve) => setTimeout(resolve, 5));
}

async function connecting() {
  try {
    const all = await connect();
    const report = await round(all);
    await all.driver.close();
    await all.wafer?.close();
    return report;
  } catch (thrown) {
    // Only where there was nobody to connect to.
    return { refused: thrown.code ?? String(thrown.stack) };
  }
}

process.on('message', async (command) => {
  if (command === 'abandon') {
    abandoned = true;
  } else if (command === 'close') {
    await connected?.driver.close();
    await connected?.wafer?.close();
    process.disconnect();
  } else {
    abandoned = false;
    if (connected) await usable(connected);
    process.send(connected ? await round(connected) : await connecting());
  }
});
process.send({ ready: true });
