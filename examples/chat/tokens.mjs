// From messages to tokens, and from tokens to text.
import ranks from 'gpt-tokenizer/bpeRanks/r50k_base';
import { encode } from 'gpt-tokenizer/encoding/r50k_base';

/** Ends a message, and an answer. Ids from here on stand for no text: what anybody writes never becomes one of them. */
export const END = ranks.length;
/** Begin messages. */
const MARKERS = { system: END + 1, user: END + 2, assistant: END + 3 };
/** Up to a multiple of 64, as is usual; the last ids are never used. */
export const VOCABULARY_SIZE = Math.ceil((END + 4) / 64) * 64;

/** Longer words are cut: what a word takes to encode grows with its length squared. */
const LONGEST_WORD = 256;
const LONG_WORD = new RegExp(`\\S{${LONGEST_WORD + 1}}`, 'u');
const WORDS = new RegExp(`\\s*\\S{1,${LONGEST_WORD}}|\\s+$`, 'gu');
/** Names of special tokens in a text are text. */
const PLAIN = { allowedSpecial: new Set(), disallowedSpecial: new Set() };

/** Tokens of a text, all of them below END. */
export function encodeText(text) {
  const wellFormed = text.toWellFormed();
  if (!LONG_WORD.test(wellFormed)) return encode(wellFormed, PLAIN);
  return (wellFormed.match(WORDS) ?? []).flatMap((word) => encode(word, PLAIN));
}

/** Tokens of a conversation, up to where the assistant's next answer begins. `messages`: `{ role, content }`. */
export function encodeConversation(messages) {
  const tokens = messages.flatMap(({ role, content }) => [MARKERS[role], ...encodeText(content), END]);
  return Uint32Array.from([...tokens, MARKERS.assistant]);
}

/**
 * The text of an answer, token by token. A character that is spread over several tokens comes with its last one, and text that
 * may be the beginning of a stop string when it is clear that it is not.
 */
export class TextStream {
  /** Whether a stop string has come; nothing comes after that. */
  stopped = false;
  /** All that has come. */
  text = '';
  #decoder = new TextDecoder('utf-8', { ignoreBOM: true });
  #held = '';

  constructor(stops = []) {
    this.stops = stops;
  }

  /** What one more token adds. */
  push(token) {
    const bytes = ranks[token];
    this.#held += this.#decoder.decode(typeof bytes === 'string' ? Buffer.from(bytes) : Uint8Array.from(bytes), {
      stream: true,
    });
    return this.#take(false);
  }

  /** What is left when no more tokens come: half a character is U+FFFD then. */
  end() {
    this.#held += this.#decoder.decode();
    return this.#take(true);
  }

  #take(all) {
    if (this.stopped) return '';
    const found = this.stops.map((stop) => this.#held.indexOf(stop)).filter((at) => at >= 0);
    this.stopped = found.length > 0;
    const upTo = this.stopped ? Math.min(...found) : this.#held.length - (all ? 0 : this.#openEnd());
    const text = this.#held.slice(0, upTo);
    this.#held = this.#held.slice(upTo);
    this.text += text;
    return text;
  }

  /** Length of the longest end of what is held that a stop string begins with. */
  #openEnd() {
    const most = Math.min(this.#held.length, Math.max(0, ...this.stops.map((stop) => stop.length - 1)));
    for (let length = most; length > 0; length -= 1) {
      const end = this.#held.slice(-length);
      if (this.stops.some((stop) => stop.startsWith(end))) return length;
    }
    return 0;
  }
}
