// A chat over a small demo model in ONNX Runtime, whose prompt cache in KVSS outlives it.
//   npm run example:chat                        a chat in the terminal
//   npm run example:chat -- --serve             an OpenAI-compatible endpoint alone
//   npm run example:chat -- --help
import { userInfo } from 'node:os';
import { Command, InvalidArgumentError, Option } from 'commander';
import { ChatError } from './errors.mjs';
import { Home } from './home.mjs';
import { reachServer, startServer, stopAll } from './host.mjs';
import { Terminal } from './terminal.mjs';

const DEFAULT_PORT = 8484;
const USER = /^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$/;

const integer = (min, max) => (text) => {
  const value = Number(text);
  if (/^\d+$/.test(text) && value >= min && value <= max) return value;
  throw new InvalidArgumentError(`It has to be an integer from ${min} to ${max}.`);
};
const userName = (text) => {
  if (USER.test(text)) return text;
  throw new InvalidArgumentError('It has to be a name of letters, digits, and _ . -');
};

const options = new Command('chat')
  .description('a chat with a small demo model whose prompt cache outlives it')
  .option('--home <dir>', 'where the model and conversations are; KVSS_CHAT_HOME, else ~/.local/state/kvss-chat')
  .option('--user <name>', 'whose conversation it is', userName)
  .option('--port <port>', 'of the HTTP endpoint on 127.0.0.1; 0 takes a free one', integer(0, 65535), DEFAULT_PORT)
  .option('--max-tokens <count>', 'longest answer', integer(1, 4096), 64)
  .addOption(new Option('--size <size>', 'of the model').choices(['tiny', 'small']).default('small'))
  .option('--budget <size>', 'memory of each of the two shards of the daemon', '256MiB')
  .addOption(new Option('--once <text>', 'one turn of the conversation, then leave').conflicts(['serve', 'stop']))
  .addOption(new Option('--serve', 'serve the HTTP endpoint alone').conflicts(['stop']))
  .option('--stop', 'stop what runs: the server, and the daemon with the cache')
  .allowExcessArguments(false)
  .parse()
  .opts();

const ending = new AbortController();
let server;
let terminal;

/** Where the server is: of another process, or this one. */
async function reach() {
  if (server?.close) return server.url;
  server = await reachServer(home, options, say);
  return server.url;
}

function say(line) {
  console.error(`chat: ${line}`);
}

for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) {
  process.on(signal, () => {
    // Who asks twice does not wait.
    if (ending.signal.aborted) process.exit(1);
    ending.abort();
    terminal?.interrupt();
  });
}
// Nobody reads any more: `chat | head`.
process.stdout.on('error', () => process.exit(1));

let home;
try {
  home = Home.open(options.home);
  if (options.stop) for (const line of await stopAll(home)) console.log(line);
  else await chat();
} catch (thrown) {
  const line = complaintOf(thrown);
  if (line === undefined) throw thrown;
  say(line);
  process.exitCode = 1;
} finally {
  await server?.close?.();
}

async function chat() {
  if (options.serve) {
    server = await startServer(home, options, say);
    console.log(`serving ${server.url}/v1: any bearer token, each a user of its own`);
    if (!ending.signal.aborted) await new Promise((resolve) => ending.signal.addEventListener('abort', resolve));
    return;
  }
  terminal = new Terminal({ home, user: options.user ?? userInfo().username, maxTokens: options.maxTokens, reach });
  say('the demo model has random weights: its text means nothing');
  const url = await reach();
  if (options.once !== undefined) return terminal.turn(options.once);
  say(`${server.close ? 'serving' : 'using'} ${url}/v1; /help says what else there is`);
  await terminal.run({ signal: ending.signal });
}

/** What the user is told of an error that is no bug of ours. */
function complaintOf(thrown) {
  if (thrown instanceof ChatError || thrown?.code?.startsWith('KVSS_')) return thrown.message;
  if (thrown?.code !== 'ERR_MODULE_NOT_FOUND') return undefined;
  if (thrown.message.includes('onnxruntime-node'))
    return 'onnxruntime-node is not installed: npm install onnxruntime-node';
  return `something is not installed or not built, npm ci does both: ${thrown.message.split('\n')[0]}`;
}
