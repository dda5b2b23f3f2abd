import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { KvssError } from '../../src/common/errors.js';
import { type DescribeOptions, describeModel, type ModelDescription } from '../../src/swdriver/model_config.js';

/** Where configs with the public facts of models are. */
export const CONFIGS = fileURLToPath(new URL('../unit/fixtures/model_configs/', import.meta.url));

/** The parsed config of a model, by its name there. */
export function configOf(name: string): unknown {
  return JSON.parse(readFileSync(`${CONFIGS}${name}.json`, 'utf8'));
}

export function modelOf(name: string, options: DescribeOptions = {}): ModelDescription {
  return describeModel(configOf(name), options);
}

/** Code and message of the KvssError that this throws. */
export function refusal(act: () => unknown): string {
  try {
    act();
  } catch (thrown) {
    if (thrown instanceof KvssError) return `${thrown.code} ${thrown.message}`;
    throw thrown;
  }
  throw new Error('was not refused');
}

export const sum = (numbers: readonly number[]) => numbers.reduce((total, each) => total + each, 0);
