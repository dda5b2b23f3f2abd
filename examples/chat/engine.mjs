// Answers to conversations: the model in ONNX Runtime with its cache in KVSS.
import { readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { OnnxDecoder, sampler } from 'kvss/onnx';
import { ApiError } from './errors.mjs';
import { ensureModel, modelId } from './model.mjs';
import { ensureDaemon, PARK_MS } from './store.mjs';
import { END, encodeConversation, encodeText, TextStream } from './tokens.mjs';

/** Threads that wait for the next run in a loop take the processor from the daemon's, and from whoever else is there. */
const NO_SPINNING = { extra: { session: { intra_op: { allow_spinning: '0' } } } };

/** Answers that are computed at once, or wait for their turn. */
const MOST_ANSWERS = 32;
/** A daemon that dies again and again is not started more often than this. */
const RESTART_PAUSE_MS = 5_000;

export class ChatEngine {
  #closing = new AbortController();
  #answers = 0;
  /** Work in the background, by tenant: conversations as their next turn will have them. */
  #settling = new Map();
  #restarting = Promise.resolve();
  #restartedAt = Number.NEGATIVE_INFINITY;
  #outputTokens = 0;

  constructor(decoder, { home, budget, say, model }) {
    this.decoder = decoder;
    this.home = home;
    this.budget = budget;
    this.say = say;
    this.model = model;
  }

  /** Starts what is not there yet: the daemon, the model. Only for who has the home's lock. */
  static async start({ home, size, budget, say }) {
    const files = await ensureModel(home, size, say);
    await ensureStore(home, budget, say);
    const model = modelId(size);
    const decoder = await OnnxDecoder.create({
      model: files.model,
      sessionOptions: NO_SPINNING,
      config: JSON.parse(readFileSync(files.config, 'utf8')),
      id: model,
      daemons: [home.socket],
      driver: { resume: { key: home.key, parkMs: PARK_MS } },
    });
    const { columns } = decoder.driver.resumed;
    if (columns > 0) say(`${columns * decoder.driver.columnTokens} tokens are in the cache from before`);
    const engine = new ChatEngine(decoder, { home, budget, say, model });
    decoder.driver.on('unavailable', () => engine.#restartStore());
    decoder.driver.on('available', () => say('the cache can be used again, and is empty'));
    return engine;
  }

  /**
   * Begins to answer. Throws an ApiError where that cannot be. `isolationId`: whose conversation it is; nobody else's prompt finds
   * it. `signal` ends it.
   */
  answer({ messages, isolationId, maxTokens, temperature, topP, seed, stops, signal }) {
    if (this.#closing.signal.aborted) throw ApiError.unavailable('the server is closing');
    if (this.#answers >= MOST_ANSWERS)
      throw ApiError.unavailable(`${this.#answers} answers are being computed already`);
    const prompt = encodeConversation(messages);
    const room = this.decoder.contextTokens - prompt.length;
    if (room < 1) {
      const { contextTokens } = this.decoder;
      throw new ApiError(400, `the messages have ${prompt.length} tokens, and the model takes ${contextTokens}`, {
        param: 'messages',
        code: 'context_length_exceeded',
      });
    }
    return new Answer(this, {
      prompt,
      stops,
      options: {
        isolationId,
        maxTokens: Math.min(maxTokens, room),
        stopTokens: [END],
        sample: textTokensOf(sampler({ temperature, topP, seed })),
        signal: AbortSignal.any([signal, this.#closing.signal]),
      },
    });
  }

  /** Answers that are being computed, conversations that are in the background, and all tokens that have been generated. */
  get figures() {
    return { answers: this.#answers, settling: this.#settling.size, outputTokens: this.#outputTokens };
  }

  /** @internal Runs an answer that counts as one while it lasts. */
  async *counted(answer, text) {
    this.#answers += 1;
    try {
      yield* text;
    } finally {
      this.#answers -= 1;
      this.#outputTokens += answer.outputTokens;
    }
  }

  /** @internal Resolves when the conversations of a tenant are in the cache as the next turn will have them. */
  async settled(isolationId) {
    await this.#settling.get(isolationId);
  }

  /**
   * @internal Computes a conversation in the background as its next turn will begin, unless it is in the cache like that. A
   * client sends text back, and the tokens of a text need not be those that it was generated with.
   */
  settle(isolationId, computed, conversation) {
    const { columnTokens } = this.decoder.driver;
    const columns = (tokens) => Math.floor(tokens / columnTokens);
    if (columns(conversation.length) <= columns(commonLength(computed, conversation))) return;
    if (conversation.length > this.decoder.contextTokens) return;
    const work = this.settled(isolationId)
      .then(async () => {
        const sequence = this.decoder.openSequence({ isolationId });
        await sequence.prefill(conversation).finally(() => sequence.close());
      })
      // The next turn computes it then.
      .catch((thrown) => this.say(`the cache could not be filled: ${thrown.code ?? thrown.name}`))
      .finally(() => {
        if (this.#settling.get(isolationId) === work) this.#settling.delete(isolationId);
      });
    this.#settling.set(isolationId, work);
  }

  /** Ends all answers, and leaves the cache to the next chat. */
  async close() {
    this.#closing.abort(ApiError.unavailable('the server is closing'));
    await Promise.all(this.#settling.values());
    await this.#restarting;
    await this.decoder.close({ park: true });
  }

  /** Has a daemon that was killed follow by a new one, which is empty. The driver finds it by itself. */
  #restartStore() {
    this.#restarting = this.#restarting
      .then(async () => {
        const pauseMs = Math.max(0, this.#restartedAt + RESTART_PAUSE_MS - performance.now());
        await sleep(pauseMs, undefined, { signal: this.#closing.signal }).catch(() => undefined);
        if (this.#closing.signal.aborted) return;
        this.#restartedAt = performance.now();
        await ensureStore(this.home, this.budget, this.say);
      })
      .catch((thrown) => this.say(`going on without a cache: ${thrown.message}`));
  }
}

/** One answer: iterate over it for its text, once. What else it says is there when the text is. */
class Answer {
  cachedTokens = 0;
  outputTokens = 0;
  /** `stop`: the model has ended it, or a stop string has. `length`: it has got as long as it may. */
  finishReason = 'length';

  constructor(engine, { prompt, stops, options }) {
    this.engine = engine;
    this.prompt = prompt;
    this.stops = stops;
    this.options = options;
  }

  get promptTokens() {
    return this.prompt.length;
  }

  [Symbol.asyncIterator]() {
    return this.engine.counted(this, this.#text());
  }

  async *#text() {
    const { engine, prompt, options } = this;
    // What is being computed there is the beginning of this one: to wait for it takes no longer than to do it twice.
    await engine.settled(options.isolationId);
    const generation = engine.decoder.generate(prompt, options);
    const stream = new TextStream(this.stops);
    const tokens = [];
    for await (const token of generation) {
      this.cachedTokens = generation.cachedTokens;
      this.outputTokens = tokens.push(token);
      const text = token === END ? '' : stream.push(token);
      if (text !== '') yield text;
      if (token === END || stream.stopped) {
        this.finishReason = 'stop';
        break;
      }
    }
    const rest = stream.end();
    // The newest token has not been computed.
    const computed = [...prompt, ...tokens.slice(0, -1)];
    engine.settle(options.isolationId, computed, Uint32Array.from([...prompt, ...encodeText(stream.text), END]));
    if (rest !== '') yield rest;
  }
}

async function ensureStore(home, budget, say) {
  const pid = await ensureDaemon(home, budget);
  if (pid === undefined) return;
  const minutes = PARK_MS / 60_000;
  say(`started a KVSS daemon (pid ${pid}). It stays when the chat ends, and keeps the cache for ${minutes} minutes`);
  say(`to stop it: npm run example:chat -- --stop --home ${home.path}`);
}

/** Chooses among the tokens that stand for text, and the one that ends it. */
const textTokensOf = (sample) => (logits) => sample(logits.subarray(0, END + 1));

function commonLength(a, b) {
  let length = 0;
  while (length < a.length && length < b.length && a[length] === b[length]) length += 1;
  return length;
}
