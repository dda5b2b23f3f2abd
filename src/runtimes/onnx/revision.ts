import { createHash, type Hash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { readFile, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { localError, messageOf } from '../../common/errors.js';

/** How an entry of `external_data` in an ONNX file begins that names a file of weights; its length and the name follow. */
const LOCATION = Buffer.from('\x0a\x08location\x12', 'latin1');

/**
 * A revision made of what a model is: the SHA-256 of its file and of the files of weights that it names, 32 digits in hex. Reads all
 * of them. Rejects with KVSS_BAD_INPUT where one cannot be read.
 */
export async function revisionOfFile(path: string): Promise<string> {
  const hash = createHash('sha256');
  try {
    const graph = await readFile(path);
    hash.update(`${graph.length};`).update(graph);
    for (const name of externalFiles(graph)) await addFile(hash, join(dirname(path), name));
  } catch (thrown) {
    throw localError('KVSS_BAD_INPUT', `model: cannot read ${path}: ${messageOf(thrown)}`, thrown);
  }
  return hash.digest('hex').slice(0, 32);
}

/** The length comes first, so that no byte can move from one file to the next. */
async function addFile(hash: Hash, file: string): Promise<void> {
  hash.update(`${(await stat(file)).size};`);
  for await (const part of createReadStream(file, { highWaterMark: 2 ** 20 })) hash.update(part);
}

/** Names of files with weights, each once, in the order in which the graph names them. */
function externalFiles(graph: Buffer): Set<string> {
  const names = new Set<string>();
  for (let at = graph.indexOf(LOCATION); at >= 0; at = graph.indexOf(LOCATION, at + 1)) {
    const start = at + LOCATION.length;
    // A name of 128 bytes and more has a longer length; the bytes may also be weights that look like this by chance.
    const [length, size] = varintAt(graph, start);
    const name = graph.toString('utf8', start + size, start + size + length);
    if (length > 0 && length <= 4096 && !name.includes('\0')) names.add(name);
  }
  return names;
}

function varintAt(bytes: Buffer, at: number): readonly [value: number, size: number] {
  const low = bytes[at] ?? 0;
  return low < 0x80 ? [low, 1] : [(low & 0x7f) + ((bytes[at + 1] ?? 0) << 7), 2];
}
