import { type Command, InvalidArgumentError } from 'commander';
import { localError, messageOf } from '../common/errors.js';
import { parseBytes } from '../common/units.js';
import { parseStreamAddress } from '../links/stream_address.js';
import type { ModelGroup } from '../swdriver/model.js';

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

/** A size such as `256MiB`. */
export function bytesOption(text: string): number {
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

const GROUP = /^([a-z][a-z0-9_-]{0,31})(?:@([1-9][0-9]*))?=([0-9]+(?:,[0-9]+)*)$/;

/** A group of layers such as `full=24,32` or, with a window of 128 tokens, `sliding@128=8,8`; may be given again. */
export function groupOption(text: string, before: readonly ModelGroup[] = []): ModelGroup[] {
  const [, name = '', window, bytes = ''] = GROUP.exec(text) ?? [];
  if (name === '') throw new InvalidArgumentError(`'${text}' is no group: NAME=BYTES,... or NAME@WINDOW=BYTES,...`);
  const windowTokens = window === undefined ? {} : { windowTokens: Number(window) };
  return [...before, { name, bytesPerToken: bytes.split(',').map(Number), ...windowTokens }];
}

/** A positive number such as `0.5`. */
export function positiveOption(text: string): number {
  const value = Number(text);
  if (!(value > 0) || !Number.isFinite(value)) throw new InvalidArgumentError(`'${text}' is not a number above 0.`);
  return value;
}

/** Addresses separated by commas; an option that is given again adds to what it had. */
export function addressesOption(text: string, before: readonly string[] = []): string[] {
  const addresses = text.split(',').map((address) => address.trim());
  if (addresses.includes('')) throw new InvalidArgumentError(`'${text}' has an empty address.`);
  for (const address of addresses) {
    try {
      parseStreamAddress(address);
    } catch (thrown) {
      throw new InvalidArgumentError(messageOf(thrown));
    }
  }
  return [...before, ...addresses];
}

/** Throws KVSS_BAD_INPUT where one of these flags, by the names of their values, was given: it would do nothing. */
export function refuseFlags(command: Command, names: readonly string[], why: string): void {
  const option = command.options.find((each) => {
    const name = each.attributeName();
    return names.includes(name) && command.getOptionValueSource(name) === 'cli';
  });
  if (option) throw localError('KVSS_BAD_INPUT', `${option.long}: ${why}`);
}
