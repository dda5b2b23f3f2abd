import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { encode } from 'gpt-tokenizer';
import { PACKAGE_ROOT } from '../common/version.js';

/** One prompt of an agent: everything that its session has said so far. */
export interface AgentTurn {
  isolationId: string;
  /** Number of the session among those of its tenant. */
  session: number;
  turn: number;
  /** The file that this turn reads. */
  about: string;
  tokens: Uint32Array;
}

const TENANTS = ['acme', 'globex'];
const SESSIONS_PER_TENANT = 3;
const TURNS = 5;
const MAX_FILE_CHARACTERS = 12_000;

const SYSTEM = `You are a careful software engineer. You read the files of a repository one by one, explain what each
does, and point out what you would change. Answer in short sentences. Never invent a file.\n`;

/**
 * Multi-turn coding-agent sessions made from the text that this package ships: each turn the agent reads one more file,
 * so that its prompt is the one before and something new. Sessions of all tenants take turns, as they would on a server;
 * tenants read the same files, and must not find each other's columns.
 */
export function* agentSessions(): Generator<AgentTurn> {
  const files = readableFiles();
  const encoded = new Map<string, Uint32Array>();
  const tokensOf = (text: string): Uint32Array => {
    const known = encoded.get(text) ?? Uint32Array.from(encode(text));
    encoded.set(text, known);
    return known;
  };
  const histories = TENANTS.map(() => Array.from({ length: SESSIONS_PER_TENANT }, () => [tokensOf(SYSTEM)]));
  for (let turn = 1; turn <= TURNS; turn += 1) {
    for (const [tenant, isolationId] of TENANTS.entries()) {
      for (let session = 1; session <= SESSIONS_PER_TENANT; session += 1) {
        // Sessions of a tenant begin with the same file and part ways after it.
        const about = files[turn === 1 ? 0 : (turn * SESSIONS_PER_TENANT + session) % files.length] as string;
        const history = histories[tenant]?.[session - 1] as Uint32Array[];
        const text = readFileSync(join(PACKAGE_ROOT, about), 'utf8').slice(0, MAX_FILE_CHARACTERS);
        history.push(tokensOf(`\nuser: Read ${about} and explain it.\ntool: ${text}\nassistant:`));
        yield { isolationId, session, turn, about, tokens: concatenate(history) };
        history.push(tokensOf(` ${about} is clear. What is next?`));
      }
    }
  }
}

/** Text files of the package, documents first. */
function readableFiles(): string[] {
  const documents = ['README.md', 'docs'].flatMap((place) => filesBelow(place, /\.md$/));
  const sources = ['src/swdriver', 'src/kvss', 'src/links', 'native/store', 'native/engine'].flatMap((place) =>
    filesBelow(place, /\.(ts|h|cc)$/),
  );
  return [...documents, ...sources];
}

function filesBelow(place: string, pattern: RegExp): string[] {
  if (pattern.test(place)) return [place];
  try {
    return readdirSync(join(PACKAGE_ROOT, place), { withFileTypes: true })
      .filter((entry) => entry.isFile() && pattern.test(entry.name))
      .map((entry) => `${place}/${entry.name}`)
      .sort();
  } catch {
    return [];
  }
}

function concatenate(parts: readonly Uint32Array[]): Uint32Array {
  const whole = new Uint32Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}
