import { afterEach, expect, test, vi } from 'vitest';
import { sameSecret, Tickets } from '../../src/links/tickets.js';

afterEach(() => {
  vi.restoreAllMocks();
});

/** Sets the time; tickets live in the time of this process alone. */
const at = (ms: number) => vi.spyOn(performance, 'now').mockReturnValue(ms);

test('a ticket opens lanes of its shard only', () => {
  const tickets = new Tickets();
  const ticket = tickets.issue(1, 1_000);
  const other = tickets.issue(2, 1_000);
  expect([0, 1, 2].map((shard) => tickets.opens(ticket, shard))).toEqual([false, true, false]);
  expect([0, 1, 2].map((shard) => tickets.opens(other, shard))).toEqual([false, false, true]);
});

test('a ticket opens as many lanes as are wanted, and nothing once its time is over', () => {
  at(5_000);
  const tickets = new Tickets();
  const ticket = tickets.issue(0, 1_000);
  const endless = tickets.issue(0, Number.POSITIVE_INFINITY);
  at(5_999);
  expect([tickets.opens(ticket, 0), tickets.opens(ticket, 0)]).toEqual([true, true]);
  at(6_000);
  expect([tickets.opens(ticket, 0), tickets.opens(endless, 0)]).toEqual([false, true]);
});

test('a ticket is compared in full, and no session knows those of another', () => {
  const tickets = new Tickets();
  const ticket = tickets.issue(0, 1_000);
  for (let byte = 0; byte < ticket.length; byte += 1) {
    expect(tickets.opens(ticket.with(byte, (ticket[byte] as number) ^ 1), 0)).toBe(false);
  }
  for (const wrong of [new Uint8Array(0), new Uint8Array(32), ticket.subarray(1)]) {
    expect(tickets.opens(wrong, 0)).toBe(false);
  }
  expect(new Tickets().opens(ticket, 0)).toBe(false);
  expect(tickets.opens(ticket.slice(), 0)).toBe(true);
});

test('secrets are the same only where all of them is', () => {
  expect(sameSecret('a secret', Buffer.from('a secret'))).toBe(true);
  for (const other of ['', 'a secre', 'a secret ', 'A secret']) expect(sameSecret('a secret', other)).toBe(false);
});
