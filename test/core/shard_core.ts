import { createRequire } from 'node:module';

/** What a transfer does with its slot; the numbers of the native TransferKind. */
export const TransferKind = { receive: 0, send: 1, scrub: 2 } as const;
export type TransferKind = (typeof TransferKind)[keyof typeof TransferKind];

/** How the port of the test answers when a transfer begins; the numbers of the native TransferState. */
export const Answer = { done: 0, failed: 1, pending: 2 } as const;
export type Answer = (typeof Answer)[keyof typeof Answer];

export interface Transfer {
  kind: TransferKind;
  sequence: number;
  grantId: number;
  slot: number;
  offset: number;
  bytes: number;
  generation: number;
  userData: number;
}

export interface BeginEvent extends Transfer {
  type: 'begin';
}

export interface EndEvent extends Transfer {
  type: 'end';
  succeeded: boolean;
  /** Both halves of the slot when a send began, and both halves when the transfer ended. */
  halves: [number, number, number, number];
}

export interface CancelEvent {
  type: 'cancel';
  kind: TransferKind;
  sequence: number;
}

/** What the core did, in order. Completions come as the bytes that a client would read. */
export type CoreEvent = BeginEvent | EndEvent | CancelEvent | Uint8Array;

export interface Tally {
  evicts: number;
  evictFaults: number;
  evictBytes: number;
  refills: number;
  refillMisses: number;
  refillFaults: number;
  refillBytes: number;
  deletes: number;
  deleteMisses: number;
  tenantAlarms: number;
  deadlines: number;
  gatedEvicts: number;
  gatedCommands: number;
  scrubbedBytes: number;
  storedSlots: number;
  evictLatency: number[];
  refillLatency: number[];
}

export interface CoreState {
  evictCount: number;
  commandCount: number;
  evictRoom: number;
  commandRoom: number;
  idle: boolean;
  quiescent: boolean;
  nextDeadlineNs: number;
  tally: Tally;
}

/**
 * One ShardSession with a port whose slots hold a stamp in two halves. An evict writes its userData, the left half when
 * it begins and the right half when it ends; a refill reads both halves at both times; a scrub writes zeros likewise. A
 * transfer that fails stops in the middle.
 */
export interface ShardCore {
  addGrant(grantId: number, slots: number, pieceBytes: number): number;
  removeGrant(grantId: number): number;
  /** How transfers that begin from now on are answered. */
  setAnswer(answer: Answer): void;
  acceptEvict(descriptor: Uint8Array, nowNs: number): void;
  acceptCommand(descriptor: Uint8Array, nowNs: number): void;
  /** Ends a pending transfer. */
  finish(kind: TransferKind, sequence: number, succeeded: boolean, nowNs: number): void;
  expire(nowNs: number): void;
  close(nowNs: number): void;
  takeEvents(): CoreEvent[];
  state(): CoreState;
}

const addon = createRequire(import.meta.url)('../../build-tests/kvss_testing.node') as {
  ShardCore: new (window: number) => ShardCore;
};

export const ShardCore = addon.ShardCore;
