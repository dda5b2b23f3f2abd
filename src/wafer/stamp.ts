import { hashText } from '../common/hash_text.js';

/** Bytes of one stamped line: a cache line, so that every torn or misplaced transfer shows. */
export const LINE_BYTES = 64;
const WORDS = LINE_BYTES / 4;

/** Whose bytes they are. Every line of a piece carries all of it, and its own number. */
export interface Stamp {
  tenantTag: bigint;
  /** 64-bit key of tenant and token prefix, computed apart from the PrefixMap. */
  columnKey: bigint;
  generation: number;
  shard: number;
  /** Group of layers; `full` if left out. */
  group?: string;
}

/** A number for a group of layers, 0 for `full`: pieces of one column in different groups must not be taken for each other. */
function groupWord(group = 'full'): number {
  // The lower bits are the shard's.
  return group === 'full' ? 0 : hashText(group) & ~0xffff;
}

/** The words that all lines of a piece begin with. */
function headOf(stamp: Stamp): Uint32Array {
  return Uint32Array.of(
    Number(stamp.tenantTag & 0xffffffffn),
    Number(stamp.tenantTag >> 32n),
    Number(stamp.columnKey & 0xffffffffn),
    Number(stamp.columnKey >> 32n),
    stamp.generation >>> 0,
    Math.floor(stamp.generation / 2 ** 32),
    groupWord(stamp.group) ^ stamp.shard,
  );
}

/** Seed of the words behind the head: they differ from line to line, so that no two lines can be taken for each other. */
function bodySeed(head: Uint32Array): number {
  let seed = 0x9e3779b9;
  for (const word of head) seed = Math.imul(seed ^ word, 0x85ebca6b) ^ (seed >>> 13);
  return seed;
}

const wordsOf = (piece: Uint8Array) => new Uint32Array(piece.buffer, piece.byteOffset, piece.byteLength / 4);

/** Fills a piece with stamped lines. Its length and place must be multiples of 64 bytes. */
export function writeStamp(piece: Uint8Array, stamp: Stamp): void {
  const words = wordsOf(piece);
  const head = headOf(stamp);
  const seed = bodySeed(head);
  const lines = words.length / WORDS;
  for (let line = 0; line < lines; line += 1) {
    const at = line * WORDS;
    for (let index = 0; index < 7; index += 1) words[at + index] = head[index] as number;
    words[at + 7] = line;
    let value = seed ^ Math.imul(line + 1, 0x9e3779b1);
    for (let index = 8; index < WORDS; index += 1) {
      value = (Math.imul(value, 0x19660d) + 0x3c6ef35f) | 0;
      words[at + index] = value;
    }
  }
}

/** Checks every byte of every line and answers how many lines are not what writeStamp wrote. */
export function countMismatches(piece: Uint8Array, stamp: Stamp): number {
  const words = wordsOf(piece);
  const head = headOf(stamp);
  const seed = bodySeed(head);
  const lines = words.length / WORDS;
  let mismatches = 0;
  for (let line = 0; line < lines; line += 1) {
    const at = line * WORDS;
    let difference = (words[at + 7] as number) ^ line;
    for (let index = 0; index < 7; index += 1) difference |= (words[at + index] as number) ^ (head[index] as number);
    let value = seed ^ Math.imul(line + 1, 0x9e3779b1);
    for (let index = 8; index < WORDS; index += 1) {
      value = (Math.imul(value, 0x19660d) + 0x3c6ef35f) | 0;
      difference |= (words[at + index] as number) ^ value;
    }
    if (difference !== 0) mismatches += 1;
  }
  return mismatches;
}
