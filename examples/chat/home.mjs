// What a chat keeps on disk. Only its owner can read any of it.
import { createHmac, randomBytes, randomUUID } from 'node:crypto';
import { linkSync, mkdirSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { homedir, userInfo } from 'node:os';
import { join, resolve } from 'node:path';
import { ChatError } from './errors.mjs';

const KEY_BYTES = 32;

export class Home {
  constructor(path) {
    this.path = path;
    this.models = join(path, 'model');
    this.socket = join(path, 'kvss.sock');
    this.log = join(path, 'kvss.log');
    this.daemonFile = join(path, 'kvss.json');
    this.serverFile = join(path, 'server.json');
    this.conversations = join(path, 'conversations');
  }

  /** `path`: where it is; under the state directory of the user if left out. Makes what is not there. */
  static open(path = process.env.KVSS_CHAT_HOME) {
    const state = process.env.XDG_STATE_HOME || join(homedir(), '.local', 'state');
    const home = new Home(resolve(path || join(state, 'kvss-chat')));
    try {
      for (const directory of [home.path, home.models, home.conversations]) {
        mkdirSync(directory, { recursive: true, mode: 0o700 });
      }
      const { mode, uid } = statSync(home.path);
      if (uid !== userInfo().uid || (mode & 0o077) !== 0) {
        throw new Error('others can read it: it has to be yours, with the mode 0700');
      }
      home.key = keyOf(join(home.path, 'key'));
    } catch (thrown) {
      if (thrown instanceof ChatError) throw thrown;
      throw new ChatError(`${home.path}: ${thrown.message}`);
    }
    return home;
  }

  /** A secret for one purpose, made of the home's own: 64 digits in hex. */
  secretFor(purpose) {
    return createHmac('sha256', this.key).update(purpose).digest('hex');
  }

  /**
   * The right to be the home's server. Undefined where another process has it. It is the name of a socket and no file: the
   * kernel takes it back from a process that dies, however it does.
   */
  lock() {
    const server = createServer((connection) => connection.destroy());
    return new Promise((fulfil, reject) => {
      server.once('error', (thrown) => {
        if (thrown.code === 'EADDRINUSE') fulfil(undefined);
        else reject(new ChatError(`cannot take the lock of ${this.path}: ${thrown.message}`));
      });
      server.listen(`\0kvss-chat-${this.secretFor('lock')}`, () => {
        server.unref();
        fulfil({ release: () => new Promise((released) => server.close(released)) });
      });
    });
  }

  conversationFile(user) {
    return join(this.conversations, `${user}.json`);
  }
}

/** The key under which the daemon keeps the cache for the next process; whoever has it gets what is in there. */
function keyOf(file) {
  const fresh = `${file}.${randomUUID()}.tmp`;
  try {
    writeFileSync(fresh, randomBytes(KEY_BYTES), { mode: 0o600, flag: 'wx' });
    // A link appears whole, and the first of two processes wins.
    linkSync(fresh, file);
  } catch (thrown) {
    if (thrown.code !== 'EEXIST') throw thrown;
  } finally {
    rmSync(fresh, { force: true });
  }
  const key = readFileSync(file);
  if (key.length !== KEY_BYTES) throw new ChatError(`${file}: has ${key.length} bytes, a key has ${KEY_BYTES}`);
  return key;
}

/** Writes a file that is there whole or not at all, for its owner alone. */
export function writePrivateJson(file, value) {
  const fresh = `${file}.${randomUUID()}.tmp`;
  writeFileSync(fresh, `${JSON.stringify(value, null, 1)}\n`, { mode: 0o600, flag: 'wx' });
  renameSync(fresh, file);
}

/** What a file says; undefined where it is not there. */
export function readJson(file) {
  let text;
  try {
    text = readFileSync(file, 'utf8');
  } catch (thrown) {
    if (thrown.code === 'ENOENT') return undefined;
    throw new ChatError(`${file}: ${thrown.message}`);
  }
  try {
    return JSON.parse(text);
  } catch {
    throw new ChatError(`${file}: it is not JSON: remove it`);
  }
}

/** Whether a process runs whose command line has this part: numbers of processes come again. */
export function runs(pid, part) {
  try {
    // One that has ended, and whose parent does not look, has no command line any more.
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes(part);
  } catch {
    return false;
  }
}
