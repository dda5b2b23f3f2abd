// A driver process for tests: evicts and refills stamped prompts without end, and says what it sees.
// Arguments: index module, socket, tenant, mode ("loop" | "evict-and-hang" | "write-on" | "hold").

const [, , index, socket, tenant, mode] = process.argv;
const { SwDriver } = await import(index);
const { StampingRuntime } = await import(new URL('./wafer/stamping_runtime.js', `file://${index}`).href);

const driver = await SwDriver.connect({
  daemons: [socket],
  model: { id: 'test', revision: '1', dtype: 'stamp', layout: 'line64', bytesPerToken: [16, 32] },
  capacityColumns: 256,
  deadlineMs: 500,
});
const wafer = new StampingRuntime(driver.columnTokens);
let downs = 0;
let ups = 0;
driver.on('down', () => (downs += 1));
driver.on('up', () => (ups += 1));

const prompt = (seed, columns) =>
  Uint32Array.from({ length: columns * driver.columnTokens }, (_, at) => Math.imul(at + 1, seed * 2654435761));

if (mode === 'evict-and-hang') {
  const tokens = prompt(1, 200);
  const sequence = driver.openSequence({ isolationId: tenant });
  const { source } = wafer.request(tenant, tokens);
  let written = 0;
  await sequence.evict(source).catch(() => {});
  sequence.match(tokens).release();
  await sequence.evict({
    write(column, pieces) {
      source.write(column, pieces);
      written += 1;
      // In the middle of an evict: slots are written, nothing is submitted yet, and nothing more will come.
      if (written === 150) {
        process.send({ written });
        return new Promise(() => {});
      }
      return true;
    },
  });
} else if (mode === 'write-on') {
  const tokens = prompt(3, 40);
  const sequence = driver.openSequence({ isolationId: tenant });
  const { source, sink } = wafer.request(tenant, tokens);
  sequence.match(tokens).release();
  await sequence.evict(source);
  // Pinned, and not let go.
  const hit = driver.openSequence({ isolationId: tenant }).match(tokens);
  const slots = [];
  const more = prompt(4, 40);
  const writing = driver.openSequence({ isolationId: tenant });
  writing.match(more).release();
  const evicting = writing.evict({
    async write(_column, pieces) {
      slots.push(...pieces);
      if (slots.length < 80) return true;
      // Never done with the last column: it writes into all of them until it is told to stop.
      let writes = 0;
      let goOn = true;
      let since = 0;
      process.on('message', () => {
        goOn = false;
      });
      process.send({ pinned: hit.columns, slots: slots.length });
      while (goOn) {
        for (const slot of slots) slot.fill(0xb0 + (writes % 16));
        writes += 1;
        if (!hit.held) since += 1;
        // Enough to be sure that it wrote after its memory had been taken away.
        if (since === 50) {
          const { columns } = await hit.refill(sink);
          process.send({ held: hit.held, columns, released: hit.release() });
        }
        await new Promise((resolve) => setImmediate(resolve));
      }
      return true;
    },
  });
  process.send({ done: true, ...(await evicting) });
  await driver.close();
  process.disconnect();
} else if (mode === 'hold') {
  const tokens = prompt(7, 20);
  const sequence = driver.openSequence({ isolationId: tenant });
  sequence.match(tokens).release();
  await sequence.evict(wafer.request(tenant, tokens).source);
  process.send({ ready: true });
  process.on('message', () => driver.close().then(() => process.exit(0)));
} else {
  let rounds = 0;
  let worstMs = 0;
  let hits = 0;
  let stop = false;
  process.on('message', () => {
    stop = true;
  });
  process.send({ ready: true });
  while (!stop) {
    const tokens = prompt(1 + (rounds % 9), 10 + (rounds % 30));
    const sequence = driver.openSequence({ isolationId: tenant });
    const { source, sink, accept } = wafer.request(tenant, tokens);
    const from = performance.now();
    const hit = sequence.match(tokens);
    const { columns } = await hit.refill(sink);
    accept(columns);
    hit.release();
    await sequence.evict(source);
    worstMs = Math.max(worstMs, performance.now() - from);
    hits += columns;
    rounds += 1;
    if (columns === 0) await new Promise((resolve) => setTimeout(resolve, 1));
    if (rounds % 50 === 0) process.send({ rounds, hits });
  }
  process.send({ done: true, rounds, hits, worstMs, downs, ups, columns: driver.columns, ...wafer.stats });
  await driver.close();
  process.disconnect();
}
