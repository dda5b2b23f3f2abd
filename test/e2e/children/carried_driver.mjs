// A driver process for tests, with a wafer that carries for it: serves prompts without end, until it is killed.
// Arguments: index module, daemon, wafer.

const [, , index, daemon, address] = process.argv;
const { SwDriver } = await import(index);
const { RemoteWafer } = await import(new URL('./wafer/remote_wafer.js', `file://${index}`).href);
const { WaferRuntime } = await import(new URL('./wafer/wafer_runtime.js', `file://${index}`).href);

const bytesPerToken = [16, 32, 48, 16];
const wafer = await RemoteWafer.connect(address, { deadlineMs: 5_000 });
const driver = await SwDriver.connect({
  daemons: [daemon],
  model: { id: 'test', revision: '1', dtype: 'stamp', layout: 'line64', bytesPerToken },
  carrier: wafer.carrier,
});
const runtime = new WaferRuntime(wafer, 64, 64 * 112);
for (let round = 1; ; round += 1) {
  const tokens = Uint32Array.from({ length: 64 * 20 }, (_, at) => Math.imul(at + 1, (round % 5) + 1));
  const sequence = driver.openSequence({ isolationId: 'acme' });
  const request = runtime.request('acme', tokens);
  const hit = sequence.match(tokens);
  const { columns, quiet } = await hit.refill(request.sink);
  await request.accept(columns, quiet);
  hit.release();
  await request.compute();
  await sequence.evict(request.source);
  request.end();
  if (round === 10) process.send({ served: round });
}
