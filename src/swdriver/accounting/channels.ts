import diagnostics from 'node:diagnostics_channel';
import type { MissCause } from './miss_cause.js';

/** Who a message is about. Never the tenant itself: messages end up in logs. */
interface About {
  /** Id of the model. */
  model: string;
  /** Class of the tenant; `default` where its policy names none. */
  tenantClass: string;
}

/** A prompt was looked up. */
export interface MatchMessage extends About {
  /** Tokens of the prompt. */
  promptTokens: number;
  /** Tokens of the hit. */
  hitTokens: number;
  /** Columns of the hit. */
  columns: number;
  /** Tokens that were missed, by cause. With those of the hit they are the tokens of the prompt. */
  missTokens: Readonly<Record<MissCause, number>>;
  /** Milliseconds of the lookup. */
  durationMs: number;
}

/** A refill has ended. */
export interface RefillMessage extends About {
  /** Columns that the runtime has got. */
  columns: number;
  /** Columns of the hit that it has not got after all. */
  missedColumns: number;
  /** Tokens that the runtime has got. */
  tokens: number;
  /** Milliseconds, with what the sink took. */
  durationMs: number;
}

/** An evict has ended; columns as in EvictResult. */
export interface EvictMessage extends About {
  stored: number;
  present: number;
  dropped: number;
  /** Milliseconds, with what the source took. */
  durationMs: number;
}

/** Columns went because their time to live had passed. */
export interface ExpireMessage extends About {
  columns: number;
}

/** A stripe can be used, with nothing in it, or is gone with all that it held. */
export interface StripeMessage {
  /** Id of the model. */
  model: string;
  /** Number of the stripe: 0 where columns lie across all daemons, else that of its daemon among the options. */
  stripe: number;
  /** Whether it came, or went. */
  up: boolean;
  /** Why it went; empty where it came. */
  reason: string;
}

/** Channels of node:diagnostics_channel and what is published there. */
export interface ChannelMessages {
  'kvss:match': MatchMessage;
  'kvss:refill': RefillMessage;
  'kvss:evict': EvictMessage;
  'kvss:expire': ExpireMessage;
  'kvss:stripe': StripeMessage;
}

/** Names of the channels. */
export type ChannelName = keyof ChannelMessages;

// Made once: looking a channel up by its name costs more than asking whether anybody listens.
const CHANNELS: Readonly<Record<ChannelName, diagnostics.Channel>> = {
  'kvss:match': diagnostics.channel('kvss:match'),
  'kvss:refill': diagnostics.channel('kvss:refill'),
  'kvss:evict': diagnostics.channel('kvss:evict'),
  'kvss:expire': diagnostics.channel('kvss:expire'),
  'kvss:stripe': diagnostics.channel('kvss:stripe'),
};

export const CHANNEL_NAMES = Object.keys(CHANNELS) as readonly ChannelName[];

/** Whether anybody listens. */
export function hasListeners(name: ChannelName): boolean {
  return CHANNELS[name].hasSubscribers;
}

/**
 * Tells whoever listens, at once and in the order of subscription; `make` is not called where nobody does. Of what a
 * listener throws Node makes an uncaught exception; it never comes back here.
 */
export function publish<Name extends ChannelName>(name: Name, make: () => ChannelMessages[Name]): void {
  const channel = CHANNELS[name];
  if (channel.hasSubscribers) channel.publish(make());
}

/** Listens to a channel until the answer is called. The same as node:diagnostics_channel's subscribe, with types. */
export function subscribe<Name extends ChannelName>(
  name: Name,
  listener: (message: ChannelMessages[Name]) => void,
): () => void {
  const heard = (message: unknown) => listener(message as ChannelMessages[Name]);
  diagnostics.subscribe(name, heard);
  return () => {
    diagnostics.unsubscribe(name, heard);
  };
}
