// A client of the server, as any other would be one.
import { ChatError } from './errors.mjs';

/** The server has gone, or goes: another one may answer. Nothing of the answer has come. */
export class ServerGone extends ChatError {}

/**
 * Asks for the next message of a conversation. `onText` gets the answer bit by bit. Resolves with `text`, the server's `usage`, and
 * `firstMs`, from the request to the first text, and `tokensPerSecond` from there on. Rejects with a ChatError, and with the
 * signal's reason.
 */
export async function ask(url, { token, messages, maxTokens, signal }, onText) {
  const startedAt = performance.now();
  const body = { messages, max_completion_tokens: maxTokens, stream: true, stream_options: { include_usage: true } };
  let text = '';
  let usage;
  let done = false;
  let firstMs;
  try {
    const response = await fetch(`${url}/v1/chat/completions`, {
      method: 'POST',
      headers: { authorization: `Bearer ${token}`, 'content-type': 'application/json' },
      body: JSON.stringify(body),
      signal,
    });
    if (!response.ok) throw refusalOf(response.status, (await response.json()).error);
    for await (const data of eventsOf(response.body)) {
      if (data === '[DONE]') {
        done = true;
        continue;
      }
      const { choices = [], error, ...rest } = JSON.parse(data);
      if (error) throw text === '' ? new ServerGone(error.message) : new ChatError(error.message);
      usage = rest.usage ?? usage;
      const content = choices[0]?.delta.content ?? '';
      if (content === '') continue;
      firstMs ??= performance.now() - startedAt;
      text += content;
      onText(content);
    }
  } catch (thrown) {
    signal?.throwIfAborted();
    if (thrown instanceof ChatError) throw thrown;
    throw text === '' ? new ServerGone('the server has gone') : new ChatError('the server has gone in mid-answer');
  }
  if (!done) throw new ChatError('the answer breaks off');
  const endMs = performance.now() - startedAt;
  firstMs ??= endMs;
  return { text, usage, firstMs, tokensPerSecond: (usage.completion_tokens - 1) / ((endMs - firstMs) / 1000) };
}

function refusalOf(status, { message }) {
  return status === 503 ? new ServerGone(message) : new ChatError(message);
}

/** The data of server-sent events. */
async function* eventsOf(stream) {
  let held = '';
  for await (const text of stream.pipeThrough(new TextDecoderStream())) {
    const blocks = (held + text).split('\n\n');
    held = blocks.pop();
    for (const block of blocks) if (block.startsWith('data: ')) yield block.slice('data: '.length);
  }
}
