import { createCipheriv, createDecipheriv, createHash, hkdfSync, randomBytes } from 'node:crypto';
import { localError } from '../common/errors.js';

/** Bytes for the names and contents of a record; a column with more of them cannot be taken back. */
const TEXT_BYTES = 768;
const MAGIC = 0x5253564b;
const SALT_BYTES = 16;
const TAG_BYTES = 16;
/** Magic, parts that still count, salt, generation, length of what is encrypted, tag. */
const HEADER_BYTES = 4 + 4 + SALT_BYTES + 8 + 4 + TAG_BYTES;
const PARTS_AT = 4;
const SALT_AT = 8;
const GENERATION_AT = SALT_AT + SALT_BYTES;
const LENGTH_AT = GENERATION_AT + 8;
const TAG_AT = LENGTH_AT + 4;
/** Index, generation of the column before, time, number of parts. */
const FIXED_BYTES = 4 + 8 + 8 + 1;
const PART_BYTES = 1 + 4;
const ALIGNMENT = 64;
const LEAST_KEY_BYTES = 32;

/** The part of a column that one group has. */
export interface RecordedPart {
  readonly group: number;
  readonly slot: number;
}

/** What a driver has to know of a column to find it again. */
export interface ColumnRecord {
  readonly isolationId: string;
  readonly adapter: string;
  /** Position in the prefix. */
  readonly index: number;
  /** Rises with every column of a driver, also when it is started again. */
  readonly generation: number;
  /** Generation of the column that it continues; 0 for the first of a prefix. */
  readonly parentGeneration: number;
  /** When it was stored: milliseconds since 1970. */
  readonly storedAtMs: number;
  readonly tokens: Uint32Array;
  /** What it holds besides tokens, as Contents spells it. */
  readonly spelling: string;
  readonly parts: readonly RecordedPart[];
}

/** What is made of the key of a driver. Nothing of the key itself is ever sent or stored. */
export interface OwnerKeys {
  /** Brings parked memory back. */
  readonly secret: Uint8Array;
  /** SHA-256 of the secret: what daemons know meanwhile. */
  readonly owner: Uint8Array;
  /** Key of the tenants' tags. */
  readonly tagKey: Buffer;
  /** Where the keys of records come from. */
  readonly recordKey: Buffer;
}

/** Keys for one purpose each (HKDF, RFC 5869, with SHA-256). Throws KVSS_BAD_INPUT for a key that is too short. */
export function ownerKeysOf(key: Uint8Array): OwnerKeys {
  if (!(key instanceof Uint8Array) || key.length < LEAST_KEY_BYTES) {
    throw localError('KVSS_BAD_INPUT', `resume.key: at least ${LEAST_KEY_BYTES} bytes are needed`);
  }
  const derive = (purpose: string) => Buffer.from(hkdfSync('sha256', key, new Uint8Array(0), `kvss ${purpose}`, 32));
  const secret = derive('parked memory');
  return {
    secret,
    owner: createHash('sha256').update(secret).digest(),
    tagKey: derive('tenant tags'),
    recordKey: derive('column records'),
  };
}

/** Bytes of a record for columns of so many tokens: whole cache lines. */
export function recordBytesOf(columnTokens: number, groups: number): number {
  const most = HEADER_BYTES + FIXED_BYTES + groups * PART_BYTES + 3 * 2 + TEXT_BYTES + 4 * columnTokens;
  return Math.ceil(most / ALIGNMENT) * ALIGNMENT;
}

/**
 * Records of columns as they lie beside the columns, in memory that the daemon keeps when the driver dies: encrypted and
 * authenticated with AES-256-GCM under the driver's key, bound to the model and to the slot that they lie in. A new key
 * for each run of a driver, from a random salt, so that no generation ever meets the same key twice.
 *
 * Which parts count is not encrypted: a part that makes room is struck out in place, at once, before its slot is written
 * again. Whoever can write there could have a part missed, or believed in that the daemon's slot table still has; the
 * daemon could do as much to the columns themselves.
 */
export class ColumnRecords {
  readonly #salt = randomBytes(SALT_BYTES);
  readonly #keys = new Map<string, Buffer>();
  readonly #binding: Buffer;
  readonly #bytes: number;

  constructor(
    private readonly recordKey: Buffer,
    /** What has to be the same for a record to mean anything: the model and its groups. */
    model: string,
    private readonly columnTokens: number,
    groups: number,
  ) {
    this.#binding = createHash('sha256').update(`${columnTokens}:${model}`).digest();
    this.#bytes = recordBytesOf(columnTokens, groups);
  }

  /** Writes the record that is to lie in a slot of a stripe. One that is too long leaves nothing there. */
  write(piece: Uint8Array, stripe: number, slot: number, record: ColumnRecord): void {
    const at = Buffer.from(piece.buffer, piece.byteOffset, this.#bytes);
    at.writeUInt32LE(0, 0);
    const plain = this.#spell(record);
    if (HEADER_BYTES + plain.length > at.length) return;
    const cipher = createCipheriv('aes-256-gcm', this.#keyOf(this.#salt), nonceOf(record.generation));
    cipher.setAAD(this.#boundTo(stripe, slot));
    cipher.update(plain).copy(at, HEADER_BYTES);
    cipher.final();
    cipher.getAuthTag().copy(at, TAG_AT);
    this.#salt.copy(at, SALT_AT);
    at.writeBigUInt64LE(BigInt(record.generation), GENERATION_AT);
    at.writeUInt32LE(plain.length, LENGTH_AT);
    at.writeUInt32LE(record.parts.reduce((mask, { group }) => mask | (1 << group), 0) >>> 0, PARTS_AT);
    at.writeUInt32LE(MAGIC, 0);
  }

  /** Strikes a record out in place: its column is about to make room. */
  static strike(piece: Uint8Array): void {
    piece.fill(0, 0, ALIGNMENT);
  }

  /** Strikes the part of one group out in place: it is about to make room. */
  static strikePart(piece: Uint8Array, group: number): void {
    const at = Buffer.from(piece.buffer, piece.byteOffset, HEADER_BYTES);
    at.writeUInt32LE((at.readUInt32LE(PARTS_AT) & ~(1 << group)) >>> 0, PARTS_AT);
  }

  /**
   * The record in a slot of a stripe that the daemon says holds `generation`; undefined where there is none, or where
   * anything about it is doubtful: another key, another model, another slot, torn or damaged bytes.
   */
  read(piece: Uint8Array, stripe: number, slot: number, generation: number): ColumnRecord | undefined {
    // Once into memory of our own: nothing that is checked may change afterwards.
    const at = Buffer.from(piece.subarray(0, this.#bytes));
    const length = at.readUInt32LE(LENGTH_AT);
    if (at.readUInt32LE(0) !== MAGIC || length > at.length - HEADER_BYTES) return undefined;
    if (at.readBigUInt64LE(GENERATION_AT) !== BigInt(generation)) return undefined;
    const salt = at.subarray(SALT_AT, SALT_AT + SALT_BYTES);
    try {
      const decipher = createDecipheriv('aes-256-gcm', this.#keyOf(salt), nonceOf(generation));
      decipher.setAAD(this.#boundTo(stripe, slot));
      decipher.setAuthTag(at.subarray(TAG_AT, TAG_AT + TAG_BYTES));
      const plain = decipher.update(at.subarray(HEADER_BYTES, HEADER_BYTES + length));
      decipher.final();
      return this.#parse(plain, generation, at.readUInt32LE(PARTS_AT));
    } catch {
      return undefined;
    }
  }

  #spell(record: ColumnRecord): Buffer {
    const { isolationId, adapter, index, parentGeneration, storedAtMs, tokens, spelling, parts } = record;
    const fixed = Buffer.alloc(FIXED_BYTES + parts.length * PART_BYTES);
    fixed.writeUInt32LE(index, 0);
    fixed.writeBigUInt64LE(BigInt(parentGeneration), 4);
    fixed.writeDoubleLE(storedAtMs, 12);
    fixed.writeUInt8(parts.length, 20);
    for (const [number, { group, slot }] of parts.entries()) {
      fixed.writeUInt8(group, FIXED_BYTES + number * PART_BYTES);
      fixed.writeUInt32LE(slot, FIXED_BYTES + number * PART_BYTES + 1);
    }
    const texts = [isolationId, adapter, spelling].flatMap((text) => {
      const bytes = Buffer.from(text, 'utf16le');
      const length = Buffer.alloc(2);
      length.writeUInt16LE(Math.min(bytes.length, 0xffff));
      return [length, bytes];
    });
    return Buffer.concat([fixed, ...texts, Buffer.from(tokens.buffer, tokens.byteOffset, tokens.byteLength)]);
  }

  /** Throws where the bytes end too early. */
  #parse(plain: Buffer, generation: number, mask: number): ColumnRecord {
    let at = FIXED_BYTES;
    const parts: RecordedPart[] = [];
    for (let left = plain.readUInt8(20); left > 0; left -= 1, at += PART_BYTES) {
      const group = plain.readUInt8(at);
      if ((mask & (1 << group)) !== 0) parts.push({ group, slot: plain.readUInt32LE(at + 1) });
    }
    const text = () => {
      const from = at + 2;
      at = from + plain.readUInt16LE(at);
      return plain.toString('utf16le', from, at);
    };
    const [isolationId, adapter, spelling] = [text(), text(), text()];
    const tokens = Uint32Array.from({ length: this.columnTokens }, (_, index) => plain.readUInt32LE(at + 4 * index));
    return {
      isolationId,
      adapter,
      index: plain.readUInt32LE(0),
      generation,
      parentGeneration: Number(plain.readBigUInt64LE(4)),
      storedAtMs: plain.readDoubleLE(12),
      tokens,
      spelling,
      parts,
    };
  }

  #keyOf(salt: Buffer): Buffer {
    const name = salt.toString('hex');
    let key = this.#keys.get(name);
    if (!key) {
      key = Buffer.from(hkdfSync('sha256', this.recordKey, salt, 'kvss run', 32));
      this.#keys.set(name, key);
    }
    return key;
  }

  #boundTo(stripe: number, slot: number): Buffer {
    const place = Buffer.alloc(8);
    place.writeUInt32LE(stripe, 0);
    place.writeUInt32LE(slot, 4);
    return Buffer.concat([this.#binding, place]);
  }
}

/** A generation is used once with a key. */
function nonceOf(generation: number): Buffer {
  const nonce = Buffer.alloc(12);
  nonce.writeBigUInt64LE(BigInt(generation), 0);
  return nonce;
}
