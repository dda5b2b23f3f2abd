import { readFileSync } from 'node:fs';
import { basename } from 'node:path';
import { z } from 'zod';
import { localError, messageOf } from '../common/errors.js';

/** One request of a trace: its prompt as blocks that have been given numbers. */
export interface TraceRequest {
  /** Tokens of the prompt. */
  inputTokens: number;
  /** Number of each block of the prompt; equal numbers in one scope mean equal tokens. */
  blocks: readonly number[];
  /** When it came, in seconds from the start of the trace. */
  atSeconds: number;
}

/** A trace file. */
export interface Trace {
  name: string;
  /** Tokens of a full block. */
  blockTokens: number;
  /** Block numbers mean the same within a scope. */
  scope: number;
  requests: TraceRequest[];
}

const id = z.number().int().min(0).max(0xffffffff);

const chatLine = z.object({
  timestamp: z.number().min(0),
  input_length: z.number().int().min(0),
  hash_ids: z.array(id),
});
const CHAT_BLOCK_TOKENS = 512;

const agentFile = z.object({
  block_size: z.number().int().min(1).max(65_536),
  requests: z.array(z.object({ t: z.number().min(0), in: z.number().int().min(0), hash_ids: z.array(id) })),
});

/**
 * Reads a trace in either of two public formats and finds out which it is: one JSON object a line with blocks of 512
 * tokens (`timestamp`, `input_length`, `hash_ids`), or one JSON object a file (`block_size`, `requests`). Throws
 * KVSS_BAD_TRACE with file, line and cause.
 */
export function readTrace(path: string, scope: number): Trace {
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch (cause) {
    throw localError('KVSS_BAD_TRACE', `cannot read ${path}: ${messageOf(cause)}`, cause);
  }
  const name = basename(path);
  const firstLine = text.slice(0, text.indexOf('\n') + 1 || undefined);
  const first = tryParse(firstLine);
  const isChat = typeof first === 'object' && first !== null && 'hash_ids' in first;
  const trace = isChat ? readChat(path, text) : readAgent(path, text);
  return { name, scope, ...trace };
}

function readChat(path: string, text: string): Pick<Trace, 'blockTokens' | 'requests'> {
  const requests: TraceRequest[] = [];
  for (const [index, line] of text.split('\n').entries()) {
    if (line.trim() === '') continue;
    const where = `${path}:${index + 1}`;
    const { timestamp, input_length: inputTokens, hash_ids: blocks } = check(chatLine, parse(line, where), where);
    checkLength(inputTokens, blocks.length, CHAT_BLOCK_TOKENS, where);
    requests.push({ inputTokens, blocks, atSeconds: timestamp / 1000 });
  }
  return { blockTokens: CHAT_BLOCK_TOKENS, requests };
}

function readAgent(path: string, text: string): Pick<Trace, 'blockTokens' | 'requests'> {
  const { block_size: blockTokens, requests } = check(agentFile, parse(text, path), path);
  return {
    blockTokens,
    requests: requests.map(({ t, in: inputTokens, hash_ids: blocks }, index) => {
      checkLength(inputTokens, blocks.length, blockTokens, `${path}: requests.${index}`);
      return { inputTokens, blocks, atSeconds: t };
    }),
  };
}

/** Blocks have to cover the prompt, but for a last block that is not full and may or may not have got a number. */
function checkLength(inputTokens: number, blocks: number, blockTokens: number, where: string): void {
  if (Math.abs(blocks * blockTokens - inputTokens) > blockTokens) {
    throw localError(
      'KVSS_BAD_TRACE',
      `${where}: ${blocks} blocks of ${blockTokens} tokens do not make a prompt of ${inputTokens} tokens`,
    );
  }
}

function check<T>(schema: z.ZodType<T>, value: unknown, where: string): T {
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0];
  throw localError('KVSS_BAD_TRACE', `${where}: '${issue?.path.join('.') || 'request'}': ${issue?.message}`);
}

function parse(text: string, where: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw localError('KVSS_BAD_TRACE', `${where}: not a trace: ${messageOf(cause)}`, cause);
  }
}

function tryParse(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/**
 * Tokens of a request, made from its block numbers. Blocks with different numbers, or of different scopes, differ in
 * their first two tokens; the others are mixed from both.
 */
export function tokensOf(trace: Trace, request: TraceRequest): Uint32Array {
  const { blockTokens, scope } = trace;
  const tokens = new Uint32Array(Math.min(request.inputTokens, request.blocks.length * blockTokens));
  for (const [index, block] of request.blocks.entries()) {
    const at = index * blockTokens;
    const end = Math.min(at + blockTokens, tokens.length);
    let value = Math.imul(block + 1, 0x9e3779b1) ^ Math.imul(scope + 1, 0x85ebca6b);
    for (let place = at; place < end; place += 1) {
      value = (Math.imul(value, 0x19660d) + 0x3c6ef35f) | 0;
      tokens[place] = value;
    }
    if (at < end) tokens[at] = block;
    if (at + 1 < end) tokens[at + 1] = scope;
  }
  return tokens;
}

/** Columns that a replay stores if nothing is ever evicted: the different prefixes of full columns. */
export function workingSetColumns(traces: readonly Trace[], columnTokens: number): number {
  let columns = 0;
  for (const trace of traces) {
    const seen = new Set<string>();
    const numbers = new Map<string, number>();
    for (const request of trace.requests) {
      // A prefix gets a number when it is first seen, so that keys stay short however long the prefix.
      let prefix = 0;
      const covered = Math.min(request.inputTokens, request.blocks.length * trace.blockTokens);
      const full = Math.floor(covered / columnTokens);
      for (let column = 0; column < full; column += 1) {
        const first = Math.floor((column * columnTokens) / trace.blockTokens);
        const last = Math.floor(((column + 1) * columnTokens - 1) / trace.blockTokens);
        const key = `${prefix}:${request.blocks.slice(first, last + 1).join(',')}:${(column * columnTokens) % trace.blockTokens}`;
        if (!seen.has(key)) {
          seen.add(key);
          numbers.set(key, seen.size);
          columns += 1;
        }
        prefix = numbers.get(key) as number;
      }
    }
  }
  return columns;
}
