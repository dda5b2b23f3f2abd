import {
  type HioMode,
  type NativeShard,
  native as nativeBinding,
  nativeError,
  type SessionFault,
} from '../binding/native.js';
import type { ShardState } from '../proto/frames.js';
import { ShardCounters } from './counters.js';

/** One shard of a daemon: its place in the box, its native half and its live figures. */
export class Shard {
  readonly counters: ShardCounters;

  private constructor(
    readonly index: number,
    readonly domain: number,
    readonly native: NativeShard,
  ) {
    const [segment] = nativeBinding.mapCounters(native.countersDescriptor()) as [ArrayBuffer];
    this.counters = new ShardCounters(segment);
  }

  /** Takes the budget from the system and starts the engine. */
  static async start(
    settings: {
      index: number;
      domain: number;
      budgetBytes: number;
      hugePages: boolean;
      hioMode: HioMode;
      spinUs: number;
    },
    onFault: (sessionId: number, fault: SessionFault) => void,
  ): Promise<Shard> {
    try {
      return new Shard(settings.index, settings.domain, await nativeBinding.Shard.create(settings, onFault));
    } catch (thrown) {
      throw nativeError(thrown);
    }
  }

  state(): ShardState {
    return { index: this.index, domain: this.domain, ...this.native.memory() };
  }
}
