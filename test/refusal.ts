import { expect } from 'vitest';
import { KvssError } from '../src/common/errors.js';

function messageOf(thrown: unknown, code: string): string {
  expect(thrown).toBeInstanceOf(KvssError);
  expect((thrown as KvssError).code).toBe(code);
  return (thrown as KvssError).message;
}

/** The message of the KvssError that something throws. Fails where it does not. */
export function refusal(act: () => unknown, code = 'KVSS_BAD_INPUT'): string {
  try {
    act();
  } catch (thrown) {
    return messageOf(thrown, code);
  }
  throw new Error('was not refused');
}

/** The message of the KvssError that something throws, or that it rejects with. Fails where it does neither. */
export async function refusalOf(act: () => unknown, code = 'KVSS_BAD_INPUT'): Promise<string> {
  try {
    await act();
  } catch (thrown) {
    return messageOf(thrown, code);
  }
  throw new Error('was not refused');
}
