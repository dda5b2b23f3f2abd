import { localError } from '../common/errors.js';
import { hashText } from '../common/hash_text.js';

/** Tokens of a prompt that stand for something else, such as an image: equal placeholders may stand for different things. */
export interface ContentSpan {
  /** First token of the span, counted from the first of the tokens that it is given with. */
  readonly offset: number;
  /** Tokens of the span. */
  readonly length: number;
  /** Digest of what the tokens stand for, 32 bytes, e.g. SHA-256 of the image as the model sees it. */
  readonly digest: Uint8Array;
}

const DIGEST_BYTES = 32;
/** A number that no content has. */
export const UNKNOWN_CONTENT = 0xffffffff;

/**
 * Numbers for what columns hold besides tokens: the spans that lie in a column, each with its digest, its length and its
 * offset from the start of the column. Contents are told apart by all of that, not by a hash; a number is kept as long as
 * a column has it.
 */
export class Contents {
  readonly #numbers = new Map<string, number>();
  readonly #spellings: string[] = [''];
  readonly #hashes: number[] = [0];
  readonly #columns: number[] = [0];
  readonly #free: number[] = [];

  /** Contents that columns have now. */
  get size(): number {
    return this.#numbers.size;
  }

  /** Number of a content; UNKNOWN_CONTENT where no column has it. */
  find(spelling: string): number {
    return spelling === '' ? 0 : (this.#numbers.get(spelling) ?? UNKNOWN_CONTENT);
  }

  /** A column has this content from now on. */
  retain(spelling: string): number {
    if (spelling === '') return 0;
    let number = this.#numbers.get(spelling);
    if (number === undefined) {
      number = this.#free.pop() ?? this.#spellings.length;
      this.#numbers.set(spelling, number);
      this.#spellings[number] = spelling;
      this.#hashes[number] = hashText(spelling);
      this.#columns[number] = 0;
    }
    this.#columns[number] = (this.#columns[number] as number) + 1;
    return number;
  }

  /** A column is gone that had this content. */
  release(number: number): void {
    if (number === 0) return;
    const columns = (this.#columns[number] as number) - 1;
    this.#columns[number] = columns;
    if (columns > 0) return;
    this.#numbers.delete(this.#spellings[number] as string);
    this.#spellings[number] = '';
    this.#free.push(number);
  }

  /** 32 bits that are the same for equal contents, whenever they come. */
  hashOf(number: number): number {
    return this.#hashes[number] ?? 0;
  }

  /** The content of a number that a column has. */
  spellingOf(number: number): string {
    return this.#spellings[number] as string;
  }
}

/** What the columns of a sequence hold besides tokens. */
export class SpanList {
  readonly #spellings = new Map<number, string>();
  #columns = 0;

  constructor(private readonly columnTokens: number) {}

  /** Columns up to the last one that holds anything besides tokens. */
  get columns(): number {
    return this.#columns;
  }

  /** Adds spans of `length` tokens that begin at token `from` of the sequence. Throws KVSS_BAD_INPUT for spans that are none. */
  add(spans: readonly ContentSpan[], from: number, length: number): void {
    for (const [index, span] of spans.entries()) checkSpan(span, index, length);
    for (const span of spans) {
      const digest = Buffer.from(span.digest).toString('hex');
      const begin = from + span.offset;
      const last = Math.floor((begin + span.length - 1) / this.columnTokens);
      for (let column = Math.floor(begin / this.columnTokens); column <= last; column += 1) {
        const before = this.#spellings.get(column) ?? '';
        const offset = begin - column * this.columnTokens;
        this.#spellings.set(column, `${before}${offset}+${span.length}=${digest};`);
      }
      this.#columns = Math.max(this.#columns, last + 1);
    }
  }

  /** What a column holds besides tokens; empty for nothing. */
  spellingOf(column: number): string {
    return this.#spellings.get(column) ?? '';
  }

  /** Numbers of the contents of all columns up to the last one that has any. */
  numbersIn(contents: Contents): Uint32Array {
    return Uint32Array.from({ length: this.#columns }, (_, column) => contents.find(this.spellingOf(column)));
  }
}

function checkSpan({ offset, length, digest }: ContentSpan, index: number, tokens: number): void {
  const bad = (message: string) => localError('KVSS_BAD_INPUT', `spans[${index}].${message}`);
  if (!Number.isInteger(offset) || offset < 0) throw bad(`offset: ${offset} is no token of the prompt`);
  if (!Number.isInteger(length) || length < 1 || offset + length > tokens) {
    throw bad(`length: ${length} tokens from ${offset} on are not within ${tokens} tokens`);
  }
  if (!(digest instanceof Uint8Array) || digest.length !== DIGEST_BYTES) {
    throw bad(`digest: ${DIGEST_BYTES} bytes are needed`);
  }
}
