// One hazard of embedding, in a process of its own. Arguments: index module, socket, hazard.
import { stat } from 'node:fs/promises';
import { createServer } from 'node:net';
import { isMainThread, Worker, workerData } from 'node:worker_threads';

const [, , index, socket, hazard] = isMainThread ? process.argv : [null, null, ...workerData];
const { KvssDaemon, SwDriver } = await import(index);
const model = { id: 'test', revision: '1', dtype: 'stamp', layout: 'line64', bytesPerToken: [16, 32] };
const tokens = Uint32Array.from({ length: 64 * 10 }, (_, at) => at);
const connect = () => SwDriver.connect({ daemons: [socket], model, capacityColumns: 20, deadlineMs: 2_000 });
const write = (_column, pieces) => {
  for (const piece of pieces) piece.fill(7);
  return true;
};
async function store(driver) {
  const sequence = driver.openSequence({ isolationId: 'acme' });
  sequence.match(tokens).release();
  return (await sequence.evict({ write })).stored;
}
/** A daemon that takes every connection and never says a word. */
async function blackHole() {
  const server = createServer(() => {});
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  return `tcp://127.0.0.1:${server.address().port}`;
}

/** Begins to connect and answers with how many attempts have ended since. They have more time than any test. */
function reachForNobody(address, attempts) {
  let ended = 0;
  for (let attempt = 0; attempt < attempts; attempt += 1) {
    const connecting = SwDriver.connect({ daemons: [address], model, connectDeadlineMs: 300_000 });
    connecting.catch(() => undefined).finally(() => (ended += 1));
  }
  return () => ended;
}

const hazards = {
  async exitWhilePending() {
    const driver = await connect();
    store(driver);
    process.exit(0);
  },
  async exitWithEverythingOpen() {
    const driver = await connect();
    await store(driver);
    const hit = driver.openSequence({ isolationId: 'acme' }).match(tokens);
    console.log(hit.columns);
    process.exit(0);
  },
  async uncaughtError() {
    await connect();
    setImmediate(() => {
      throw new Error('of the embedder');
    });
  },
  async worker() {
    const worker = new Worker(new URL(import.meta.url), { workerData: [index, socket, 'insideWorker'] });
    const code = await new Promise((resolve) => worker.once('exit', resolve));
    // The main thread can use the addon as well, at the same time and after.
    const driver = await connect();
    console.log(code, await store(driver));
    await driver.close();
  },
  async insideWorker() {
    const driver = await connect();
    console.log(await store(driver));
    await driver.close();
  },
  async terminatedWorker() {
    // Many times: it depends on what the worker is doing at that moment.
    const codes = [];
    for (let round = 0; round < 12; round += 1) {
      const worker = new Worker(new URL(import.meta.url), { workerData: [index, socket, 'busyWorker'] });
      await new Promise((resolve) => worker.once('message', resolve));
      codes.push(await worker.terminate());
    }
    console.log(codes.join(''));
  },
  async busyWorker() {
    const { parentPort } = await import('node:worker_threads');
    const driver = await connect();
    for (let round = 0; ; round += 1) {
      const sequence = driver.openSequence({ isolationId: `tenant ${round}` });
      sequence.match(tokens).release();
      await sequence.evict({ write });
      if (round === 20) parentPort.postMessage('busy');
      await new Promise((resolve) => setImmediate(resolve));
    }
  },
  async busyLoop() {
    const driver = await SwDriver.connect({ daemons: [socket], model, capacityColumns: 20, deadlineMs: 50, spinUs: 0 });
    // A runtime that computes for longer than the deadline on the thread of the driver, right behind the call and in a
    // phase of the event loop that timers follow at once.
    const askAndCompute = (ask) =>
      new Promise((resolve) => {
        setImmediate(async () => {
          resolve(ask());
          for (let turn = 0; turn < 20; turn += 1) await undefined;
          Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 200);
        });
      });
    console.log(await askAndCompute(() => store(driver)));
    const hit = driver.openSequence({ isolationId: 'acme' }).match(tokens);
    const refilled = askAndCompute(() => hit.refill({ read() {} }));
    console.log((await refilled).columns);
    hit.release();
    await driver.close();
  },
  async attachedTwice() {
    const [first, second] = [await connect(), await connect()];
    console.log(await store(first), await store(second), first.columns, second.columns);
    await first.close();
    console.log(await store(second), second.columns);
    await second.close();
  },
  async closedWhilePending() {
    const driver = await connect();
    await store(driver);
    const hit = driver.openSequence({ isolationId: 'acme' }).match(tokens);
    const refill = hit.refill({ read() {} });
    const evict = store(driver);
    await driver.close();
    await driver.close();
    console.log((await refill).columns, await evict, driver.columns);
  },
  async exitWhileConnecting() {
    reachForNobody(await blackHole(), 1);
    setImmediate(() => process.exit(0));
  },
  async terminatedWhileConnecting() {
    const worker = new Worker(new URL(import.meta.url), { workerData: [index, await blackHole(), 'connectingWorker'] });
    await new Promise((resolve) => worker.once('message', resolve));
    console.log(await worker.terminate());
    process.exit(0);
  },
  async connectingWorker() {
    const { parentPort } = await import('node:worker_threads');
    reachForNobody(socket, 12);
    setImmediate(() => parentPort.postMessage('connecting'));
  },
  async manyConnecting() {
    const answered = reachForNobody(await blackHole(), 12);
    // These need threads of libuv's pool, of which there are four.
    for (let round = 0; round < 20; round += 1) await stat('/');
    console.log(answered());
    process.exit(0);
  },
  async garbageCollected() {
    const views = await (async () => {
      const driver = await connect();
      await store(driver);
      const kept = [];
      const hit = driver.openSequence({ isolationId: 'acme' }).match(tokens);
      await hit.refill({ read: (_column, pieces) => void kept.push(...pieces) });
      await driver.close();
      return kept;
    })();
    for (let round = 0; round < 5; round += 1) {
      globalThis.gc();
      await new Promise((resolve) => setImmediate(resolve));
    }
    // The mapping lives as long as a view of it, whatever became of driver and daemon.
    console.log(views.every((view) => view.every((byte) => byte === 7 || byte === 0)));
  },
  async droppedWithoutClose() {
    await connect();
    globalThis.gc();
    await new Promise((resolve) => setImmediate(resolve));
    globalThis.gc();
    process.exit(0);
  },
  async daemonInTheSameProcess() {
    const daemon = await KvssDaemon.start({
      socket: `${socket}.inner`,
      shards: [{ budget: '1MiB' }, { budget: '1MiB' }],
      http: false,
      hio: { mode: 'buffered' },
      logLevel: 'silent',
    });
    const driver = await SwDriver.connect({ daemons: [`${socket}.inner`], model });
    console.log(await store(driver));
    await daemon.stop();
    console.log(await store(driver), driver.capacityColumns);
    await driver.close();
  },
};

await hazards[hazard]();
if (isMainThread) process.disconnect?.();
