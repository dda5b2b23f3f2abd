import { expect } from 'vitest';
import { KvssError } from '../../src/common/errors.js';

/** The message of the KvssError that something throws, or that it rejects with. Fails where it does neither. */
export async function refusalOf(act: () => unknown, code = 'KVSS_BAD_INPUT'): Promise<string> {
  try {
    await act();
  } catch (thrown) {
    expect(thrown).toBeInstanceOf(KvssError);
    expect((thrown as KvssError).code).toBe(code);
    return (thrown as KvssError).message;
  }
  throw new Error('was not refused');
}
