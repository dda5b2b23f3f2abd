/** Containers inside containers that a payload may have; ours have three. */
const MAX_DEPTH = 16;

/**
 * Whether bytes are one msgpack value of nil, booleans, numbers, strings, binary, arrays and maps, whole and with nothing
 * behind it. Extension types are refused: a decoder builds objects of classes from them, and a peer has no business to
 * choose which.
 */
export function isPlainMsgpack(bytes: Uint8Array): boolean {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  return skipValue(view, 0, 0) === bytes.length;
}

const INVALID = -1;

/** Where the value at `at` ends, or INVALID. */
function skipValue(view: DataView, at: number, depth: number): number {
  if (at >= view.byteLength || depth > MAX_DEPTH) return INVALID;
  const tag = view.getUint8(at);
  if (tag < 0x80 || tag >= 0xe0) return at + 1;
  if (tag < 0x90) return skipValues(view, at + 1, 2 * (tag & 0x0f), depth);
  if (tag < 0xa0) return skipValues(view, at + 1, tag & 0x0f, depth);
  if (tag < 0xc0) return end(view, at + 1 + (tag & 0x1f));
  const body = at + 1;
  switch (tag) {
    case 0xc0: // nil
    case 0xc2: // false
    case 0xc3: // true
      return body;
    case 0xc4: // bin 8, 16, 32
    case 0xd9: // str 8
      return skipSized(view, body, 1);
    case 0xc5:
    case 0xda: // str 16
      return skipSized(view, body, 2);
    case 0xc6:
    case 0xdb: // str 32
      return skipSized(view, body, 4);
    case 0xca: // float 32
    case 0xce: // uint 32
    case 0xd2: // int 32
      return end(view, body + 4);
    case 0xcb: // float 64
    case 0xcf: // uint 64
    case 0xd3: // int 64
      return end(view, body + 8);
    case 0xcc: // uint 8
    case 0xd0: // int 8
      return end(view, body + 1);
    case 0xcd: // uint 16
    case 0xd1: // int 16
      return end(view, body + 2);
    case 0xdc: // array 16
    case 0xdd: // array 32
      return skipCounted(view, body, tag === 0xdc ? 2 : 4, 1, depth);
    case 0xde: // map 16
    case 0xdf: // map 32
      return skipCounted(view, body, tag === 0xde ? 2 : 4, 2, depth);
    default: // extensions, and the one tag that is never used
      return INVALID;
  }
}

function end(view: DataView, at: number): number {
  return at <= view.byteLength ? at : INVALID;
}

/** A big-endian number of 1, 2 or 4 bytes, or INVALID where it does not fit. */
function numberAt(view: DataView, at: number, size: number): number {
  if (at + size > view.byteLength) return INVALID;
  return size === 1 ? view.getUint8(at) : size === 2 ? view.getUint16(at) : view.getUint32(at);
}

function skipSized(view: DataView, at: number, size: number): number {
  const length = numberAt(view, at, size);
  return length === INVALID ? INVALID : end(view, at + size + length);
}

function skipCounted(view: DataView, at: number, size: number, valuesEach: number, depth: number): number {
  const count = numberAt(view, at, size);
  return count === INVALID ? INVALID : skipValues(view, at + size, count * valuesEach, depth);
}

function skipValues(view: DataView, at: number, count: number, depth: number): number {
  let cursor = at;
  // Each value takes a byte at least, so a count that is a lie ends at the end of the bytes.
  for (let index = 0; index < count && cursor !== INVALID; index += 1) cursor = skipValue(view, cursor, depth + 1);
  return cursor;
}
