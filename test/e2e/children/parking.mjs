// A process that evicts into its slots without end, to be killed in the middle of it. No driver: a link, and what the daemon
// keeps of it.
// Arguments: index module, address, owner (hex), label, slots, piece bytes.

const [, , index, address, owner, label, slotsText, pieceText] = process.argv;
const load = (path) => import(new URL(path, `file://${index}`).href);
const { connectorFor } = await load('./links/connect.js');
const { Opcode, Status } = await load('./proto/generated.js');

const slots = Number(slotsText);
const pieceBytes = Number(pieceText);
const connect = connectorFor({ wioStreams: 2, placeBytes: slots * pieceBytes, checksums: false });
const connection = await connect(address, 10_000);
const park = { owner: Buffer.from(owner, 'hex'), ms: 60_000 };
const link = await connection.openLink({ shard: 0, member: 0, slots, pieceBytes, ringEntries: 64, label, park });

let evicts = 0;
let deletes = 0;
let generation = 0;
let ended = 0;

async function run(opcode, items, generations, after) {
  const batch = {
    id: 1,
    opcode,
    flags: 0,
    length: items.length,
    slots: Uint32Array.from(items),
    places: Uint32Array.from(items),
    generations,
    tenantTag: 7n,
    after,
    timeoutUs: 60_000_000,
  };
  let sent = 0;
  let open = items.length;
  while (open > 0) {
    if (sent < items.length) sent += link.submit(batch, sent);
    link.poll((_id, _item, status) => {
      if (status === Status.ok || opcode === Opcode.delete) open -= 1;
      else throw new Error(`an operation ended with ${status}`);
    });
    await new Promise((resolve) => setImmediate(resolve));
  }
}

const current = new Float64Array(slots);
for (let round = 0; ; round += 1) {
  // Ten at a time, all over the grant.
  const items = Array.from({ length: 10 }, (_, item) => (round * 7 + item) % slots);
  // Written in place, a slot may be half of the old and half of the new: it is given up first.
  if (link.inPlace) {
    await run(
      Opcode.delete,
      items,
      Float64Array.from(items, (slot) => current[slot]),
      evicts,
    );
    deletes += items.length;
  }
  const generations = new Float64Array(items.length);
  for (const [item, slot] of items.entries()) {
    generation += 1;
    generations[item] = generation;
    current[slot] = generation;
    const piece = link.piece(slot);
    for (let at = 0; at < pieceBytes; at += 1) piece[at] = (slot * 31 + generation * 7 + at) & 0xff;
  }
  await run(Opcode.evict, items, generations, deletes);
  evicts += items.length;
  ended += 1;
  if (ended % 20 === 0) process.send({ evicts });
}
