// An HTTP server that speaks the part of OpenAI's interface that chats use.
import { createHmac, randomInt, randomUUID } from 'node:crypto';
import { Readable } from 'node:stream';
import Fastify from 'fastify';
import { z } from 'zod';
import { ApiError, ChatError } from './errors.mjs';

/** Loopback only: whoever reaches it may use it. */
export const HOST = '127.0.0.1';
const LOCAL_HOST = /^(127\.0\.0\.1|localhost)(:\d+)?$/;
const BODY_LIMIT_BYTES = 2 ** 20;
const MOST_MESSAGES = 4096;
const DEFAULT_MAX_TOKENS = 128;
const LONGEST_TOKEN = 512;

const textPart = z.looseObject({ type: z.literal('text'), text: z.string() });
const message = z.looseObject({
  role: z.enum(['system', 'developer', 'user', 'assistant']),
  content: z.union([z.string(), z.array(textPart)], 'has to be a string or a list of text parts'),
});
const stopString = z
  .string()
  .min(1)
  .max(256)
  .refine((stop) => stop.isWellFormed(), 'has half a character');
/** Clients send null for what they leave out, and keys that mean nothing here. */
const chatRequest = z.looseObject({
  model: z.string().nullish(),
  messages: z.array(message).min(1).max(MOST_MESSAGES),
  stream: z.boolean().nullish(),
  stream_options: z.looseObject({ include_usage: z.boolean().nullish() }).nullish(),
  n: z.literal(1, 'only 1 is possible').nullish(),
  max_tokens: z.number().int().min(1).nullish(),
  max_completion_tokens: z.number().int().min(1).nullish(),
  temperature: z.number().min(0).max(2).nullish(),
  top_p: z.number().min(0).max(1).nullish(),
  seed: z.number().int().nullish(),
  stop: z.union([stopString, z.array(stopString).max(4)], 'has to be a string or up to four').nullish(),
});

/** The server of an engine. `identity`: what says to the programs of this home that it is theirs. Call listen() on it. */
export function createChatServer({ engine, home, identity }) {
  const app = Fastify({ logger: false, bodyLimit: BODY_LIMIT_BYTES, forceCloseConnections: true });
  const createdAt = seconds();
  app.decorateRequest('isolationId', '');

  // A page in a browser may have its own name resolved to this machine; its requests still bear that name.
  app.addHook('onRequest', async ({ headers }) => {
    if (!LOCAL_HOST.test(headers.host ?? '')) throw new ApiError(403, `'Host': only ${HOST} is served`);
  });
  app.setErrorHandler((thrown, _, reply) => send(reply, apiErrorOf(thrown)));
  app.setNotFoundHandler((request, reply) => {
    const what = `there is no ${request.method} ${request.url.split('?')[0]}`;
    return send(reply, new ApiError(404, what, { code: 'unknown_url' }));
  });
  app.get('/health', () => ({ status: 'ok', model: engine.model, ...identity, ...engine.figures }));
  app.register(async (api) => {
    api.addHook('onRequest', async (request) => {
      request.isolationId = isolationIdOf(request.headers.authorization, home.key);
    });
    const model = { id: engine.model, object: 'model', created: createdAt, owned_by: 'kvss' };
    api.get('/v1/models', () => ({ object: 'list', data: [model] }));
    api.get('/v1/models/:id', ({ params }) => {
      if (params.id !== engine.model) throw noModel(params.id);
      return model;
    });
    api.post('/v1/chat/completions', (request, reply) => {
      const asked = parsed(request.body, engine.model);
      // Who has gone does not read the answer.
      const gone = new AbortController();
      reply.raw.once('close', () => gone.abort(new ApiError(499, 'the client has gone')));
      const answer = engine.answer({ ...asked, isolationId: request.isolationId, signal: gone.signal });
      const head = { id: `chatcmpl-${randomUUID()}`, created: seconds(), model: engine.model };
      if (!asked.stream) return whole(answer, head);
      reply.header('content-type', 'text/event-stream; charset=utf-8').header('cache-control', 'no-store');
      return reply.send(Readable.from(events(answer, head, asked.includeUsage), { objectMode: false }));
    });
  });
  return app;
}

/** Listens, and resolves with the URL. `port`: 0 takes a free one. */
export async function listen(app, port) {
  try {
    return await app.listen({ host: HOST, port });
  } catch (thrown) {
    if (thrown.code === 'EADDRINUSE') throw new ChatError(`port ${port} is in use: --port 0 takes a free one`);
    throw new ChatError(`port ${port}: ${thrown.message}`);
  }
}

async function whole(answer, head) {
  let content = '';
  for await (const text of answer) content += text;
  const choice = { index: 0, message: { role: 'assistant', content, refusal: null }, logprobs: null };
  return {
    ...head,
    object: 'chat.completion',
    choices: [{ ...choice, finish_reason: answer.finishReason }],
    usage: usageOf(answer),
  };
}

/** Server-sent events: the role, the text bit by bit, why it ends, where it is wanted the usage, and `[DONE]`. */
async function* events(answer, head, includeUsage) {
  const event = (value) => `data: ${typeof value === 'string' ? value : JSON.stringify(value)}\n\n`;
  const chunk = (choices, usage = null) =>
    event({ ...head, object: 'chat.completion.chunk', choices, ...(includeUsage ? { usage } : {}) });
  const choice = (delta, finish_reason = null) => [{ index: 0, delta, logprobs: null, finish_reason }];
  try {
    yield chunk(choice({ role: 'assistant', content: '' }));
    for await (const content of answer) yield chunk(choice({ content }));
    yield chunk(choice({}, answer.finishReason));
    if (includeUsage) yield chunk([], usageOf(answer));
    yield event('[DONE]');
  } catch (thrown) {
    // The status has been sent.
    yield event(apiErrorOf(thrown).body);
  }
}

function usageOf({ promptTokens, cachedTokens, outputTokens }) {
  return {
    prompt_tokens: promptTokens,
    completion_tokens: outputTokens,
    total_tokens: promptTokens + outputTokens,
    prompt_tokens_details: { cached_tokens: cachedTokens },
  };
}

/** A name of the user for the cache, from which the token cannot be guessed. Throws an ApiError without a token. */
function isolationIdOf(authorization, key) {
  const token = /^Bearer +(\S+)$/i.exec(authorization ?? '')?.[1];
  if (token === undefined || token.length > LONGEST_TOKEN) {
    throw new ApiError(401, `'Authorization: Bearer TOKEN' is needed: the token says whose cache it is`, {
      code: 'invalid_api_key',
    });
  }
  return createHmac('sha256', key).update(`tenant ${token}`).digest('hex');
}

function parsed(body, model) {
  const result = chatRequest.safeParse(body);
  if (!result.success) throw refusal(result.error.issues[0], body);
  const asked = result.data;
  if (asked.model && asked.model !== model) throw noModel(asked.model);
  return {
    messages: asked.messages.map(({ role, content }) => ({
      role: role === 'developer' ? 'system' : role,
      content: typeof content === 'string' ? content : content.map(({ text }) => text).join(''),
    })),
    stream: asked.stream ?? false,
    includeUsage: asked.stream_options?.include_usage ?? false,
    maxTokens: asked.max_completion_tokens ?? asked.max_tokens ?? DEFAULT_MAX_TOKENS,
    temperature: asked.temperature ?? 1,
    // The likeliest token alone where it is 0.
    topP: Math.max(asked.top_p ?? 1, Number.EPSILON),
    seed: asked.seed ?? randomInt(2 ** 32),
    stops: [asked.stop ?? []].flat(),
  };
}

/** What is wrong with a request, by the first of zod's issues; within a union by the member that came furthest. */
function refusal(issue, body) {
  if (body === undefined || body === null || typeof body !== 'object') {
    return new ApiError(400, 'the body has to be a JSON object');
  }
  const path = [...issue.path];
  let deepest = issue;
  while (deepest.code === 'invalid_union') {
    const first = (issues) => issues[0]?.path.length ?? 0;
    const [furthest] = [...(deepest.errors ?? [])].sort((a, b) => first(b) - first(a));
    const inner = furthest?.[0];
    if (!inner || inner.path.length === 0) break;
    path.push(...inner.path);
    deepest = inner;
  }
  return ApiError.badParam(path.join('.') || 'body', deepest.message);
}

const noModel = (name) =>
  new ApiError(404, `there is no model '${name}' here`, { param: 'model', code: 'model_not_found' });

function apiErrorOf(thrown) {
  if (thrown instanceof ApiError) return thrown;
  const { statusCode } = thrown;
  if (statusCode === 413) {
    return new ApiError(413, `the body has more than ${BODY_LIMIT_BYTES} bytes`, { code: 'request_too_large' });
  }
  if (statusCode === 415) return new ApiError(415, 'the body has to be application/json');
  // Its message may show some of the body.
  if (statusCode >= 400 && statusCode < 500) return new ApiError(statusCode, 'the body is not JSON');
  // Neither the prompt nor the answer may get into a log: the code says enough.
  console.error(`a request failed: ${thrown.code ?? thrown.name}`);
  return new ApiError(500, 'the answer failed', { type: 'server_error', code: thrown.code ?? null });
}

function send(reply, { status, body }) {
  if (status === 401) reply.header('www-authenticate', 'Bearer');
  if (status === 503) reply.header('retry-after', '1');
  return reply.code(status).send(body);
}

const seconds = () => Math.floor(Date.now() / 1000);
