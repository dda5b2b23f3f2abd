import { randomBytes } from 'node:crypto';
import * as fc from 'fast-check';
import { describe, expect, test, vi } from 'vitest';
import type { ModelGroup } from '../../src/swdriver/model.js';
import { SwDriver } from '../../src/swdriver/sw_driver.js';
import { ManualClock, settled } from './manual_clock.js';
import { settings } from './property_settings.js';
import { COLUMN_BYTES, COLUMN_TOKENS, prompt, Rig, type RigOptions } from './rig.js';
import { SimulatedBox } from './simulated_link.js';

// What became of columns is remembered in sets of bounded size: with another seed now and then one is full.
vi.mock('../../src/swdriver/accounting/fingerprint.js', async (original) => {
  const { Fingerprint } = await original<typeof import('../../src/swdriver/accounting/fingerprint.js')>();
  return {
    Fingerprint: class extends Fingerprint {
      constructor() {
        super(7, 8);
      }
    },
  };
});

const WINDOWED: readonly ModelGroup[] = [
  { name: 'full', bytesPerToken: [2, 4] },
  { name: 'sliding', bytesPerToken: [0, 8], windowTokens: 2 * COLUMN_TOKENS, capacityShare: 0.5 },
  { name: 'draft', bytesPerToken: [2, 0], required: false },
];
const key = randomBytes(32);

/** Drivers of one key that follow each other on one box. Each has a clock of its own: those that were killed do nothing. */
class Line {
  readonly box: SimulatedBox;

  constructor(readonly options: RigOptions = {}) {
    const shards = options.groups?.[0]?.bytesPerToken.length ?? 2;
    const budgets = Array.from({ length: options.stripes ?? 1 }, () => Array<number>(shards).fill(2 ** 26));
    this.box = new SimulatedBox(new ManualClock(), budgets);
  }

  first(): Promise<Rig> {
    return this.#start(SwDriver.connect);
  }

  next(more: RigOptions = {}): Promise<Rig> {
    return this.#start(SwDriver.resume, more);
  }

  #start(start: RigOptions['start'], { more, ...rest }: RigOptions = {}): Promise<Rig> {
    const options: RigOptions = { ...this.options, ...(start ? { start } : {}), ...rest, box: this.box };
    return Rig.create({ ...options, more: { resume: { key }, ...this.options.more, ...more } });
  }
}

const SEEDS = [1, 2, 3];
/** Columns that are found of each of some prompts. */
const found = (rig: Rig, tenants = ['a', 'b']) =>
  tenants.flatMap((tenant) => SEEDS.map((seed) => rig.find(tenant, prompt(9, seed))));
/** The same, with all bytes read. */
async function read(rig: Rig, tenants = ['a', 'b']): Promise<number[]> {
  const columns: number[] = [];
  for (const tenant of tenants) {
    for (const seed of SEEDS) columns.push(await rig.read(tenant, prompt(9, seed)));
  }
  return columns;
}

describe('a driver that is killed and started again', () => {
  test.each([1, 2, 3])('finds all that it had, over %i stripes', async (stripes) => {
    const line = new Line({ stripes });
    const before = await line.first();
    await before.store('a', prompt(9, 1));
    await before.store('a', [...prompt(4, 1), ...prompt(3, 2)], 'an adapter');
    await before.store('b', prompt(5, 2));
    expect(before.driver.resumed).toEqual({ columns: 0, doubtful: 0 });
    line.box.wouldLeave()();
    const after = await line.next();
    expect(after.driver.resumed).toEqual({ columns: 21, doubtful: 0 });
    expect(after.driver.columns).toBe(21);
    // They are not stored a second time.
    const evicted = [...after.driver.metricsSource.accounts].map(({ columnsEvicted }) => columnsEvicted);
    expect([after.driver.stats.columnsEvicted, ...evicted]).toEqual([0, 0]);
    expect(await read(after)).toEqual([9, 0, 0, 0, 5, 0]);
    expect(await after.read('a', [...prompt(4, 1), ...prompt(3, 2)], 'an adapter')).toBe(7);
    // A group of its own holds the records.
    expect(after.driver.storedBytesOf('b')).toBeGreaterThan(5 * COLUMN_BYTES);
    await after.end();
  });

  test('finds all that it had when it says that it will be back, over several stripes too', async () => {
    for (const stripes of [1, 2]) {
      const line = new Line({ stripes });
      const before = await line.first();
      await before.store('a', prompt(9, 1));
      await before.driver.close({ park: true });
      const after = await line.next();
      expect(after.driver.resumed).toEqual({ columns: 9, doubtful: 0 });
      expect(await after.read('a', prompt(9, 1))).toBe(9);
      await after.end();
      // And nothing after a goodbye.
      expect((await line.next()).driver.resumed).toEqual({ columns: 0, doubtful: 0 });
    }
  });

  test('goes on: columns continue, make room, are forgotten and counted, with generations above all before', async () => {
    const line = new Line({ capacityColumns: 20 });
    const before = await line.first();
    await before.store('a', prompt(6, 1));
    await before.store('b', prompt(4, 2));
    const hit = before.hit('b', prompt(4, 2));
    let highest = 0;
    const sink = before.sink('b', prompt(4, 2), '', ({ generation }) => {
      highest = Math.max(highest, generation);
      return undefined;
    });
    await hit.refill(sink);
    line.box.wouldLeave()();
    const after = await line.next();
    const sequence = after.driver.openSequence({ isolationId: 'a' });
    const own = sequence.match(Uint32Array.from(prompt(6, 1)));
    expect(own.columns).toBe(6);
    expect(own.release()).toBe(true);
    sequence.append(Uint32Array.from(prompt(2, 3)));
    const tokens = [...prompt(6, 1), ...prompt(2, 3)];
    const inner = after.source('a', tokens) as { write(...of: unknown[]): boolean };
    const result = await sequence.evict({
      write: (ref, pieces) => {
        expect(ref.generation).toBeGreaterThan(highest);
        return inner.write(ref, pieces);
      },
    });
    expect(result).toMatchObject({ stored: 2, present: 6 });
    // The pins of both are gone with the drivers that had them.
    expect((await after.store('c', prompt(20, 9))).stored).toBe(20);
    expect(after.missed('a', tokens)).toEqual({ evicted: 8 * COLUMN_TOKENS });
    expect(after.missed('b', prompt(4, 2))).toEqual({ evicted: 4 * COLUMN_TOKENS });
    await after.store('a', prompt(3, 1));
    line.box.wouldLeave()();
    const third = await line.next();
    expect(third.driver.resumed).toEqual({ columns: 20, doubtful: 0 });
    expect(await third.driver.forget({ isolationId: 'a' })).toBe(3);
    expect(await third.driver.forget({ isolationId: 'c' })).toBe(17);
    expect([third.driver.columns, third.driver.storedBytesOf('a'), third.driver.storedBytesOf('c')]).toEqual([0, 0, 0]);
    line.box.wouldLeave()();
    expect((await line.next()).driver.resumed).toEqual({ columns: 0, doubtful: 0 });
  });

  test('finds columns on a stripe that stayed only as far as what they continue is there', async () => {
    const line = new Line({ stripes: 2 });
    const before = await line.first();
    for (const seed of SEEDS) await before.store('a', prompt(1, seed));
    for (const seed of SEEDS) await before.store('a', prompt(5, seed));
    line.box.wouldLeave()();
    line.box.daemon(1).parked.clear();
    const after = await line.next();
    const { columns, doubtful } = after.driver.resumed;
    expect(columns).toBeGreaterThan(0);
    // Of those that stayed.
    expect(columns + doubtful).toBeLessThanOrEqual(8);
    expect(columns + doubtful).toBeGreaterThanOrEqual(7);
    expect(after.driver.columns).toBe(columns);
    const all = await read(after, ['a']);
    expect(all.reduce((sum, each) => sum + each, 0)).toBe(columns);
    // Every slot is there once.
    expect((await after.store('b', prompt(200))).stored).toBe(200);
    expect(await after.read('b', prompt(200))).toBe(200);
    await after.end();
  });

  test('finds nothing on a stripe that goes while its records are read, and every slot of it once', async () => {
    const line = new Line({ capacityColumns: 12 });
    const daemon = line.box.daemon();
    daemon.inPlace = false;
    daemon.carries = true;
    daemon.places = 4;
    const before = await line.first();
    await before.store('a', prompt(9, 1));
    line.box.wouldLeave()();
    {
      const after = await line.next();
      expect(await after.read('a', prompt(9, 1))).toBe(9);
      line.box.wouldLeave()();
    }
    daemon.immediate = false;
    const clock = new ManualClock();
    const options = { clock, more: { deadlineMs: 100 } };
    const resuming = line.next({
      ...options,
      start: async (settings) => {
        for (const each of line.box.daemons) each.immediate = false;
        return SwDriver.resume(settings);
      },
    });
    // A few of them have come, and others are on their way.
    for (let round = 0; round < 10 && line.box.moves().length === 0; round += 1) await settled();
    line.box.finishAll();
    for (let round = 0; round < 10 && line.box.moves().length === 0; round += 1) await settled();
    expect(line.box.moves().length).toBeGreaterThan(0);
    daemon.end();
    daemon.parked.clear();
    daemon.immediate = true;
    const after = await resuming;
    expect(after.driver.resumed.columns).toBe(0);
    await clock.advance(5_000);
    expect(after.driver.usable).toBe(true);
    expect([after.driver.columns, after.find('a', prompt(9, 1)), after.driver.storedBytesOf('a')]).toEqual([0, 0, 0]);
    expect((await after.store('b', prompt(12))).stored).toBe(12);
    expect((await after.store('c', prompt(12))).stored).toBe(12);
    expect(await after.read('c', prompt(12))).toBe(12);
    await after.end();
  });

  test('leaves what it cannot have yet to the next try, where one daemon of two cannot be reached', async () => {
    const line = new Line({ stripes: 2 });
    const before = await line.first();
    await before.store('a', prompt(9, 1));
    line.box.wouldLeave()();
    line.box.daemon(1).reachable = false;
    await expect(line.next()).rejects.toMatchObject({ code: 'KVSS_UNREACHABLE' });
    line.box.daemon(1).reachable = true;
    const after = await line.next();
    expect(after.driver.resumed).toEqual({ columns: 9, doubtful: 0 });
    expect(await after.read('a', prompt(9, 1))).toBe(9);
    await after.end();
  });

  test('believes in nothing that an earlier one did not believe in, and has written over', async () => {
    const line = new Line({ stripes: 2, capacityColumns: 4 });
    const before = await line.first();
    await before.store('a', prompt(8, 1));
    line.box.wouldLeave()();
    // The other half of the prompt cannot be reached, so this one has no use for what continues it.
    const away = line.box.daemon(1);
    const parked = new Map(away.parked);
    away.reachable = false;
    const between = await line.next({ more: { lazy: true } });
    expect(between.driver.resumed).toEqual({ columns: 1, doubtful: 3 });
    const sequence = between.driver.openSequence({ isolationId: 'b' });
    sequence.match(Uint32Array.from(prompt(3, 2))).release();
    let leave = () => {};
    await sequence.evict({
      write: ({ index }, pieces) => {
        for (const piece of pieces) piece.fill(0xee, 0, Math.ceil(piece.length / 2));
        if (index === 0) leave = line.box.wouldLeave();
        return index < 1;
      },
    });
    leave();
    for (const [name, memory] of parked) away.parked.set(name, memory);
    away.reachable = true;
    const after = await line.next();
    // What continues the column that could not be reached is not what it was.
    expect(await after.read('a', prompt(8, 1))).toBe(2);
    await after.end();
  });

  test('finds windows and drafts too', async () => {
    const line = new Line({ groups: WINDOWED });
    const before = await line.first();
    await before.store('a', prompt(9, 1));
    await before.store('a', [...prompt(6, 1), ...prompt(2, 2)]);
    line.box.wouldLeave()();
    const after = await line.next();
    expect(after.driver.resumed).toEqual({ columns: 11, doubtful: 0 });
    const hit = after.hit('a', prompt(9, 1));
    expect([hit.columns, hit.tokensOf('draft')]).toEqual([9, 9 * COLUMN_TOKENS]);
    hit.release();
    expect(await after.read('a', prompt(9, 1))).toBe(9);
    expect(await after.read('a', [...prompt(6, 1), ...prompt(2, 2)])).toBe(8);
    await after.end();
  });
});

describe('a driver that is killed at any moment of an evict', () => {
  test.each<[string, RigOptions]>([
    ['one group', { capacityColumns: 8 }],
    ['two stripes', { capacityColumns: 4, stripes: 2 }],
    ['windows and drafts', { capacityColumns: 8, groups: WINDOWED }],
  ])(
    'is followed by one that finds what could be found then, and no byte of anything else (%s)',
    async (_what, options) => {
      const line = new Line(options);
      const before = await line.first();
      await before.store('a', prompt(4, 1));
      await before.store('b', prompt(4, 2));
      // Full: each column of this one goes where another was.
      const tokens = prompt(6, 3);
      const sequence = before.driver.openSequence({ isolationId: 'b' });
      sequence.match(Uint32Array.from(tokens)).release();
      const inner = before.source('b', tokens) as { write(...of: unknown[]): boolean };
      const moments: { leave: () => void; could: number[] }[] = [];
      const note = () => moments.push({ leave: line.box.wouldLeave(), could: found(before) });
      await sequence.evict({
        write: async (ref, pieces) => {
          note();
          for (const piece of pieces) piece.fill(0xee, 0, Math.ceil(piece.length / 2));
          note();
          inner.write(ref, pieces);
          note();
          await settled();
          note();
          return true;
        },
      });
      note();
      expect(moments.length).toBeGreaterThanOrEqual(6 * 4);
      let columns = 0;
      for (const { leave, could } of moments) {
        leave();
        const after = await line.next();
        const got = await read(after);
        for (const [index, count] of got.entries()) expect(count).toBeLessThanOrEqual(could[index] as number);
        // One group has no parts that come later than the record.
        if (!options.groups) expect(got).toEqual(could);
        columns += got.reduce((sum, each) => sum + each, 0);
        await after.driver.close();
      }
      expect(columns).toBeGreaterThan(0);
      expect(line.box.complaints).toEqual([]);
    },
  );
});

test('whatever drivers do and whenever they are killed, the next one has what could be found, and right', async () => {
  const tenant = fc.constantFrom('a', 'b');
  const seed = fc.constantFrom(...SEEDS);
  const step = fc.oneof(
    fc.record({
      what: fc.constantFrom('store', 'store', 'read'),
      tenant,
      seed,
      length: fc.integer({ min: 1, max: 9 }),
    }),
    fc.record({ what: fc.constantFrom('forget', 'kill', 'close', 'lose'), tenant, seed, length: fc.nat({ max: 9 }) }),
  );
  await fc.assert(
    fc.asyncProperty(
      fc.array(step, { maxLength: 30 }),
      fc.constantFrom<RigOptions>({}, { stripes: 2, capacityColumns: 7 }, { groups: WINDOWED }),
      async (steps, options) => {
        const line = new Line({ capacityColumns: 14, ...options });
        let rig = await line.first();
        for (const { what, tenant: name, seed: which, length } of steps) {
          if (what === 'store') await rig.store(name, prompt(length, which));
          else if (what === 'read') await rig.read(name, prompt(length, which));
          else if (what === 'forget') await rig.driver.forget({ isolationId: name });
          else if (what === 'lose') for (const link of line.box.links) link.lose(length);
          else {
            // Reading shows what the shards have lost.
            const could = await read(rig);
            if (what === 'kill') line.box.wouldLeave()();
            else await rig.driver.close({ park: true });
            const columns = rig.driver.columns;
            rig = await line.next();
            expect(rig.driver.resumed.columns).toBe(rig.driver.columns);
            const got = await read(rig);
            for (const [index, count] of got.entries()) expect(count).toBeLessThanOrEqual(could[index] as number);
            if (!options.groups) expect([what, got]).toEqual([what, could]);
            if (what === 'kill' && columns > 0) expect(rig.driver.columns).toBeLessThanOrEqual(columns);
          }
        }
        for (const name of ['a', 'b']) await rig.driver.forget({ isolationId: name });
        expect([rig.driver.columns, rig.driver.storedBytesOf('a'), rig.driver.storedBytesOf('b')]).toEqual([0, 0, 0]);
        const { capacityColumns } = rig.driver;
        expect((await rig.store('c', prompt(capacityColumns))).stored).toBe(capacityColumns);
        // Of a long prompt at once not all windows find room.
        if (!options.groups) expect(await rig.read('c', prompt(capacityColumns))).toBe(capacityColumns);
        await rig.end();
      },
    ),
    settings(60),
  );
});
