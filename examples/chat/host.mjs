// The server of a home: that of another process where one runs, else one in this process.
import { rmSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { ChatError } from './errors.mjs';
import { readJson, runs, writePrivateJson } from './home.mjs';
import { stopDaemon } from './store.mjs';

const DEADLINE_MS = 60_000;
const HEALTH_DEADLINE_MS = 5_000;
const POLL_MS = 50;
/** What is in the command line of every server. */
const MAIN = 'main.mjs';

/**
 * Finds the server of a home, or becomes it. Resolves with its `url`, and with `close` where it is in this process: ends its answers
 * and leaves the cache to the next one. `options`: `port`, `size`, `budget`; they are for a server that is started here.
 */
export async function reachServer(home, options, say) {
  const giveUp = performance.now() + DEADLINE_MS;
  while (performance.now() < giveUp) {
    const lock = await home.lock();
    if (lock) return serve(home, options, say, lock);
    const running = await runningServer(home);
    if (running) return running;
    await sleep(POLL_MS);
  }
  throw new ChatError(`${home.path}: a server has it, and does not answer`);
}

/** Starts the server of a home in this process. Rejects with a ChatError where another process is it. */
export async function startServer(home, options, say) {
  const lock = await home.lock();
  if (lock) return serve(home, options, say, lock);
  const at = readJson(home.serverFile)?.url;
  throw new ChatError(`${home.path}: its server runs already${at ? `, at ${at}` : ''}`);
}

/** Stops the server and the daemon of a home. Resolves with a line for each that says so. */
export async function stopAll(home) {
  const lines = [];
  const giveUp = performance.now() + DEADLINE_MS;
  let asked;
  let lock = await home.lock();
  while (!lock) {
    const pid = readJson(home.serverFile)?.pid;
    if (pid !== asked && runs(pid, MAIN)) {
      process.kill(pid, 'SIGTERM');
      asked = pid;
      lines.push(`stopped the server (pid ${pid})`);
    }
    if (performance.now() > giveUp) throw new ChatError(`${home.path}: its server does not stop`);
    await sleep(POLL_MS);
    lock = await home.lock();
  }
  try {
    rmSync(home.serverFile, { force: true });
    while (asked !== undefined && runs(asked, MAIN) && performance.now() < giveUp) await sleep(POLL_MS);
    const pid = await stopDaemon(home);
    if (pid !== undefined) lines.push(`stopped the KVSS daemon (pid ${pid}): the cache is gone`);
  } finally {
    await lock.release();
  }
  return lines.length > 0 ? lines : ['nothing was running'];
}

async function serve(home, { port, size, budget }, say, lock) {
  try {
    writePrivateJson(home.serverFile, { pid: process.pid });
    // Only who serves needs ONNX Runtime. It would tell its maker of the models that it runs, and keep a number of the machine.
    process.env.ORT_DISABLE_TELEMETRY ??= '1';
    const { ChatEngine } = await import('./engine.mjs');
    const { createChatServer, listen } = await import('./server.mjs');
    const engine = await ChatEngine.start({ home, size, budget, say });
    const app = createChatServer({ engine, home, identity: identityOf(home) });
    const close = async () => {
      await engine.close();
      await app.close();
      rmSync(home.serverFile, { force: true });
      await lock.release();
    };
    try {
      const url = await listen(app, port);
      writePrivateJson(home.serverFile, { pid: process.pid, url });
      return { url, close };
    } catch (thrown) {
      await close();
      throw thrown;
    }
  } catch (thrown) {
    rmSync(home.serverFile, { force: true });
    await lock.release();
    throw thrown;
  }
}

async function runningServer(home) {
  const url = readJson(home.serverFile)?.url;
  if (url === undefined) return undefined;
  try {
    const response = await fetch(`${url}/health`, { signal: AbortSignal.timeout(HEALTH_DEADLINE_MS) });
    // The port may be somebody else's by now.
    return (await response.json()).home === identityOf(home).home ? { url } : undefined;
  } catch {
    return undefined;
  }
}

const identityOf = (home) => ({ home: home.secretFor('identity').slice(0, 32) });
