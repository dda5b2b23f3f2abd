// Drivers that come back: records of columns, what is believed of them, and what has expired meanwhile.

import { vitest } from './killers.mjs';

const records = (name, part) => vitest('test/unit/column_records.test.ts', name, part);
const resumed = (name) => vitest('test/model/resume.test.ts', name);
const endToEnd = (name) => vitest('test/e2e/resume.test.ts', name);
const anyMoment = resumed('is followed by one that finds what could be found then, and no byte of anything else');
const killedDriver = vitest(
  'test/model/driver.test.ts',
  'a driver that is killed at any moment is followed by one that serves right bytes or a miss',
);
const anyLife = resumed(
  'whatever drivers do and whenever they are killed, the next one has what could be found, and right',
);

export const resume = [
  {
    name: 'record: it is authenticated',
    file: 'src/swdriver/column_records.ts',
    find: '      decipher.final();\n',
    replace: '',
    protects: 'P1: a record that is torn or damaged is not believed.',
    killers: [records('with any one bit of it turned says nothing, but for the parts that count')],
  },
  {
    name: 'record: it is bound to its slot',
    file: 'src/swdriver/column_records.ts',
    find: '    place.writeUInt32LE(slot, 4);\n',
    replace: '',
    protects: 'P1: the record of one slot says nothing about another.',
    killers: [records('says nothing to another slot', 'says nothing to %s')],
  },
  {
    name: 'record: it is bound to its stripe',
    file: 'src/swdriver/column_records.ts',
    find: '    place.writeUInt32LE(stripe, 0);\n',
    replace: '',
    protects: 'P1: the record of one stripe says nothing about another.',
    killers: [records('says nothing to another stripe', 'says nothing to %s')],
  },
  {
    name: 'record: it is bound to the model',
    file: 'src/swdriver/column_records.ts',
    // biome-ignore lint/suspicious/noTemplateCurlyInString: it is a piece of the source.
    find: '${columnTokens}:${model}',
    // biome-ignore lint/suspicious/noTemplateCurlyInString: likewise.
    replace: '${columnTokens}',
    protects: 'P6: columns of another model are not taken for those of this one.',
    killers: [records('says nothing to another model', 'says nothing to %s')],
  },
  {
    name: 'record: its generation is that of the slot',
    file: 'src/swdriver/column_records.ts',
    find: '    if (at.readBigUInt64LE(GENERATION_AT) !== BigInt(generation)) return undefined;\n',
    replace: '',
    also: [
      {
        file: 'src/swdriver/column_records.ts',
        find: 'this.#keyOf(salt), nonceOf(generation));',
        replace: 'this.#keyOf(salt), nonceOf(Number(at.readBigUInt64LE(GENERATION_AT))));',
      },
    ],
    protects: 'P1: a record that was written and never stored says nothing about what the slot holds.',
    killers: [records('says nothing to an older generation', 'says nothing to %s')],
  },
  {
    name: 'record: struck out it is gone',
    file: 'src/swdriver/column_records.ts',
    find: '    piece.fill(0, 0, ALIGNMENT);\n',
    replace: '',
    protects: 'P1: a column that made room is not found again.',
    killers: [records('that was struck out is gone, and a part that was struck out is gone from it')],
  },
  {
    name: 'record: a part that was struck out is gone',
    file: 'src/swdriver/column_records.ts',
    find: 'if ((mask & (1 << group)) !== 0) parts.push',
    replace: 'parts.push',
    protects: 'P1: a window that made room is not found again.',
    killers: [records('that was struck out is gone, and a part that was struck out is gone from it')],
  },
  {
    name: 'record: one that cannot be written leaves none',
    file: 'src/swdriver/column_records.ts',
    find: '    at.writeUInt32LE(0, 0);\n',
    replace: '',
    protects: 'P1: the record of the column before is not taken for that of the next.',
    killers: [records('of names that are too long is not there, nor is what was there before')],
  },
  {
    name: 'record: every run has a key of its own',
    file: 'src/swdriver/column_records.ts',
    find: 'readonly #salt = randomBytes(SALT_BYTES);',
    replace: 'readonly #salt = Buffer.alloc(SALT_BYTES);',
    protects: 'P2: no two records are encrypted with one key and nonce.',
    killers: [records('of one generation is never encrypted the same way by two runs')],
  },
  {
    name: 'record: a column that makes room is struck out first',
    file: 'src/swdriver/driver_core.ts',
    find: '    if (record) ColumnRecords.strike(record);\n    // What was never',
    replace: '    // What was never',
    protects: 'P1: who finds the record does not believe that slots still hold the column.',
    killers: [anyMoment, killedDriver, anyLife],
  },
  {
    name: 'recover: a slot holds what the shards say',
    file: 'src/swdriver/recovery.ts',
    find: '        table.holds[part.slot] === 1 &&\n',
    replace: '',
    protects: 'P1: a slot whose evict had not ended is empty.',
    killers: [anyMoment, killedDriver, anyLife],
  },
  {
    name: 'recover: a column is there in all groups or not at all',
    file: 'src/swdriver/recovery.ts',
    find: '    if (!parts || !coversWhole(core, parts)) continue;',
    replace: '    if (!parts) continue;',
    protects: 'P1: a column is found in all groups or in none.',
    killers: [anyMoment, killedDriver, anyLife],
  },
  {
    name: 'recover: what a column continues is there too',
    file: 'src/swdriver/recovery.ts',
    find: 'owner?.root : nodes.get(parentGeneration);',
    replace: 'owner?.root : (nodes.get(parentGeneration) ?? owner?.root);',
    protects: 'P6: a column is not put behind other tokens than its own.',
    killers: [
      resumed('finds columns on a stripe that stayed only as far as what they continue is there'),
      anyMoment,
      anyLife,
    ],
  },
  {
    name: 'recover: generations go on above all before',
    file: 'src/swdriver/recovery.ts',
    find: 'for (const each of table.generations) core.usedGeneration(each);',
    replace: ';',
    protects: 'P1: no generation names two contents of a slot.',
    killers: [
      resumed('goes on: columns continue, make room, are forgotten and counted, with generations above all before'),
      anyMoment,
      anyLife,
    ],
  },
  {
    name: 'recover: slots that are in use are not free',
    file: 'src/swdriver/recovery.ts',
    find: 'for (const [group, used] of taken.entries()) stripe.groups[group]?.keep(used);',
    replace: '',
    protects: 'P1: a slot is not given to another column.',
    killers: [
      resumed('goes on: columns continue, make room, are forgotten and counted, with generations above all before'),
      anyMoment,
      anyLife,
    ],
  },
  {
    name: 'expiry: what nobody asks for is deleted',
    file: 'src/swdriver/expiry.ts',
    find: 'if (this.host.expiryOf(node, serial) <= now) expired.push(node);',
    replace: 'if (false) expired.push(node);',
    protects: 'P2: what has expired is scrubbed though nobody asks for it.',
    killers: [
      vitest(
        'test/model/expiry.test.ts',
        'ends with columns deleted and scrubbed within a tick, though nobody asks for them',
      ),
    ],
  },
  {
    name: 'record: a part that makes room is struck out first',
    file: 'src/swdriver/driver_core.ts',
    find: '    if (record) ColumnRecords.strikePart(record, group);\n',
    replace: '',
    protects: 'P1: who finds the record does not believe that the slot still holds the window.',
    killers: [
      vitest(
        'test/model/lost_windows.test.ts',
        'a window that another column is being written over is not found by the driver that comes next',
      ),
    ],
  },
  {
    name: 'recover: a slot holds the generation of the record',
    file: 'src/swdriver/recovery.ts',
    find: '        table.generations[part.slot] === generation &&\n',
    replace: '',
    protects: 'P1: a slot that holds another column by now is not believed.',
    killers: [
      vitest(
        'test/model/lost_windows.test.ts',
        'a window of which the slot went to another column does not keep that one from being found again',
      ),
    ],
  },
  {
    name: 'recover: a restart makes nothing younger',
    file: 'src/swdriver/recovery.ts',
    find: '  ledger.backdate(node, core.clock.now() - ageMs);\n',
    replace: '',
    protects: 'P2: what has expired is never returned, also after a restart.',
    killers: [endToEnd('keeps to the policies, also those that came while it was away')],
  },
];
