import { createRequire } from 'node:module';
import type { NativeLane, NativeStreamLane } from '../../src/binding/native.js';

/** One connection with the simulation between its two ends: 0 is the client's, 1 the server's. */
export interface Wire {
  /** Gives the other end up to so many bytes; answers how many, or -1 where it passed the end of the stream on. */
  forward(from: 0 | 1, most: number): number;
  /** Bytes that could be forwarded, -1 where only the end could be. */
  waiting(from: 0 | 1): number;
  flip(from: 0 | 1, bit: number): void;
  /** The status that the shard's end has answered to the hello; it goes no further. */
  takeWelcome(): number;
  /** Both ends see the connection end, and what was on its way is lost. */
  end(): void;
}

/** The memory and the sessions of one shard. Nothing happens before pump(). */
export interface SimShard {
  openRing(session: number, ringEntries: number): void;
  openStream(session: number, window: number, checksums: boolean): void;
  addLane(session: number, kind: number, stream: number, wire: Wire): void;
  addGrant(
    session: number,
    grant: number,
    slots: number,
    pieceBytes: number,
  ): { slotBytes: number; bytes: number; memory: ArrayBuffer };
  /** What is wrong with the session, or whether it did anything. */
  pump(session: number, nowNs: number): 'ring' | 'protocol' | 'laneEnded' | boolean;
  hasWork(session: number): boolean;
  nextDeadlineNs(session: number): number;
  unfinished(): boolean;
  closeSession(session: number, nowNs: number): void;
  freeBytes(): number;
  tenantAlarms(): number;
  crash(): void;
}

/** What is a thread in the product has its turn here when the simulation says so. */
interface Turning {
  turn(): boolean;
  broken(): boolean;
  close(): void;
}

export interface SimRingLane extends NativeLane {
  /** Whether the wake has come; takes it. */
  woken(): boolean;
}

export interface SimStreamLane extends NativeStreamLane, Turning {
  woken(): boolean;
  broken(): boolean;
  close(): void;
}

interface SimulationAddon {
  Wire: new () => Wire;
  SimShard: new (budgetBytes: number) => SimShard;
  SimRingLane: new (shard: SimShard, session: number, ringEntries: number) => SimRingLane;
  SimStreamLane: new (
    hio: Wire,
    order: Wire | null,
    evict: Wire[],
    refill: Wire[],
    window: number,
    checksums: boolean,
  ) => SimStreamLane;
  SimCarrierLane: new (
    order: Wire,
    evict: Wire[],
    refill: Wire[],
    window: number,
    checksums: boolean,
    memory: ArrayBuffer,
    places: number,
    strideBytes: number,
    pieceBytes: number,
  ) => Turning;
}

export type SimCarrierLane = Turning;

export const simulation = createRequire(import.meta.url)('../../build-tests/kvss_simulation.node') as SimulationAddon;
