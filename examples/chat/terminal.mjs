// A chat in a terminal, or line by line from a pipe.
import { createInterface } from 'node:readline';
import { ask, ServerGone } from './client.mjs';
import { ChatError } from './errors.mjs';
import { readJson, writePrivateJson } from './home.mjs';

/** Two columns and more: what a new conversation finds in the cache after the first one. */
const SYSTEM = `You are the assistant of a small chat that shows how prompt caching works. The conversation is sent as a whole with every turn,
as chat clients do, and grows with each of them. What the model computes for a token depends on the tokens before it alone, so that the
keys and values of a beginning that has been there before need not be computed again: they are taken from the store, in columns of
sixty-four tokens, and only what is new is computed. Answer briefly, in plain words, in the language of the question, and say so when
you do not know something. Do not make up names, numbers or sources. Do not repeat the question, and do not apologise.`;

const HELP = `  /reset  forget this conversation and begin a new one
  /quit   leave; the cache stays for the next chat
  /help   this`;

const [DIM, PLAIN] = ['\x1b[2m', '\x1b[22m'];

export class Terminal {
  #answering;

  /** `reach` resolves with where the server is, also after the one before has gone. */
  constructor({ home, user, maxTokens, reach }) {
    this.file = home.conversationFile(user);
    this.token = home.secretFor(`user ${user}`);
    this.maxTokens = maxTokens;
    this.reach = reach;
    this.colours = process.stdout.isTTY === true;
    this.messages = readJson(this.file)?.messages ?? this.#fresh();
  }

  #fresh() {
    return [{ role: 'system', content: SYSTEM }];
  }

  /** One turn: prints the answer as it comes, and what it took. Rejects with a ChatError; the conversation is then what it was. */
  async turn(content) {
    const messages = [...this.messages, { role: 'user', content }];
    this.#answering = new AbortController();
    const { signal } = this.#answering;
    let shown = '';
    const request = { token: this.token, messages, maxTokens: this.maxTokens, signal };
    const onText = (text) => {
      shown += text;
      process.stdout.write(printable(text));
    };
    try {
      const { text, usage, firstMs, tokensPerSecond } = await this.#ask(request, onText);
      this.#keep([...messages, { role: 'assistant', content: text }]);
      process.stdout.write(`\n${this.#dim(summaryOf(usage, firstMs, tokensPerSecond))}\n`);
    } catch (thrown) {
      if (!signal.aborted) throw thrown;
      this.#keep([...messages, { role: 'assistant', content: shown }]);
      process.stdout.write(`\n${this.#dim('[broken off]')}\n`);
    } finally {
      this.#answering = undefined;
    }
  }

  /** The server may be in a terminal that has been closed since: then there is another one. */
  async #ask(request, onText) {
    try {
      return await ask(await this.reach(), request, onText);
    } catch (thrown) {
      if (!(thrown instanceof ServerGone)) throw thrown;
      return ask(await this.reach(), request, onText);
    }
  }

  /** Ends the answer that is coming. False where none is. */
  interrupt() {
    this.#answering?.abort();
    return this.#answering !== undefined;
  }

  reset() {
    this.#keep(this.#fresh());
  }

  /** Turns and commands, until /quit or the end of the input. Resolves when it is to end. */
  async run({ input = process.stdin, signal }) {
    const interactive = input.isTTY === true;
    const lines = createInterface({ input, ...(interactive ? { output: process.stdout, prompt: 'you> ' } : {}) });
    const end = () => lines.close();
    signal.addEventListener('abort', end);
    // In a terminal Ctrl-C comes here: it breaks an answer off, and leaves where there is none.
    lines.on('SIGINT', () => this.interrupt() || end());
    try {
      if (interactive) lines.prompt();
      for await (const line of lines) {
        if (signal.aborted || !(await this.#obey(line.trim(), interactive))) return;
        if (interactive) lines.prompt();
      }
    } finally {
      signal.removeEventListener('abort', end);
      lines.close();
    }
  }

  /** Does what a line says. False where that is to leave. */
  async #obey(line, interactive) {
    if (line === '/quit') return false;
    if (line === '/help') console.log(HELP);
    else if (line === '/reset') {
      this.reset();
      console.log(this.#dim('a new conversation'));
    } else if (line.startsWith('/')) console.log(`there is no ${line.split(' ')[0]}\n${HELP}`);
    else if (line !== '') {
      try {
        await this.turn(line);
      } catch (thrown) {
        if (!interactive || !(thrown instanceof ChatError)) throw thrown;
        console.log(`chat: ${thrown.message}`);
      }
    }
    return true;
  }

  #keep(messages) {
    this.messages = messages;
    writePrivateJson(this.file, { messages });
  }

  #dim(text) {
    return this.colours ? `${DIM}${text}${PLAIN}` : text;
  }
}

/** What a terminal may be given: a model's control characters would be commands to it. */
function printable(text) {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
  return text.replace(/[\x00-\x08\x0b-\x1f\x7f-\x9f]/g, '\ufffd');
}

function summaryOf({ prompt_tokens, completion_tokens, prompt_tokens_details }, firstMs, tokensPerSecond) {
  const rate = Number.isFinite(tokensPerSecond) ? `, ${tokensPerSecond.toFixed(1)} tokens/s` : '';
  const prompt = `${prompt_tokens} prompt tokens, ${prompt_tokens_details.cached_tokens} cached`;
  return `[${prompt}; first text after ${firstMs.toFixed(0)} ms; ${completion_tokens} tokens${rate}]`;
}
