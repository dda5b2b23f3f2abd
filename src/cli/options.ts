import { InvalidArgumentError } from 'commander';
import { messageOf } from '../common/errors.js';
import { parseBytes } from '../common/units.js';

/** Parsers of option values; they throw what commander turns into one clear line. */
export function integerOption(min: number, max = Number.MAX_SAFE_INTEGER): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (!Number.isInteger(value) || value < min || value > max) {
      throw new InvalidArgumentError(`'${text}' is not an integer in ${min}..${max}.`);
    }
    return value;
  };
}

function bytesOption(text: string): number {
  try {
    return parseBytes(text);
  } catch (thrown) {
    throw new InvalidArgumentError(messageOf(thrown));
  }
}

/** A list of sizes such as `48GiB,64GiB`. */
export function bytesListOption(text: string): number[] {
  return text.split(',').map(bytesOption);
}

/** A list of positive integers such as `16,24,32`. */
export function integerListOption(text: string): number[] {
  return text.split(',').map(integerOption(1));
}
