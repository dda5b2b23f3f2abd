import { expect, test } from 'vitest';
import { KvssError, localError, messageOf } from '../../src/common/errors.js';
import { Status, type StatusName, statusName } from '../../src/proto/generated.js';

const names = Object.keys(Status) as StatusName[];

test('every status has a code of its own, and the code leads back to it', () => {
  const codes = names.map((name) => KvssError.ofStatus(Status[name], 'why').code);
  expect(new Set(codes).size).toBe(names.length);
  for (const [index, name] of names.entries()) {
    expect(codes[index]).toMatch(/^KVSS_[A-Z]+(_[A-Z]+)*$/);
    expect(new KvssError(codes[index] as `KVSS_${string}`, 'why').status).toBe(Status[name]);
    expect(statusName(Status[name])).toBe(name);
  }
});

test('codes are what programs have learnt', () => {
  // Changing one of these breaks whoever compares with it.
  expect(KvssError.ofStatus(Status.noMemory, '').code).toBe('KVSS_NO_MEMORY');
  expect(KvssError.ofStatus(Status.missOverwritten, '').code).toBe('KVSS_MISS_OVERWRITTEN');
  expect(KvssError.ofStatus(Status.badFrame, '').code).toBe('KVSS_BAD_FRAME');
  expect(KvssError.ofStatus(Status.ok, '').code).toBe('KVSS_OK');
});

test('a status that the protocol does not have is internal', () => {
  expect(KvssError.ofStatus(9_999, 'why').code).toBe('KVSS_INTERNAL');
  expect(KvssError.ofStatus(-1, 'why').status).toBe(Status.internal);
});

test('an error without a protocol status is internal to the other side', () => {
  for (const code of [
    'KVSS_BAD_CONFIG',
    'KVSS_BAD_INPUT',
    'KVSS_UNREACHABLE',
    'KVSS_CLOSED',
    'KVSS_TIMEOUT',
  ] as const) {
    expect(localError(code, 'why').status).toBe(Status.internal);
  }
});

test('an error carries its name, its message and its cause', () => {
  const cause = new Error('below');
  const error = localError('KVSS_UNREACHABLE', 'nobody listens', cause);
  expect(error).toBeInstanceOf(Error);
  expect(error).toMatchObject({ name: 'KvssError', code: 'KVSS_UNREACHABLE', message: 'nobody listens', cause });
  expect('cause' in localError('KVSS_CLOSED', 'closed')).toBe(false);
});

test('anything that was thrown has a text', () => {
  expect([new Error('why'), 'why', 7, undefined, null].map(messageOf)).toEqual([
    'why',
    'why',
    '7',
    'undefined',
    'null',
  ]);
});
