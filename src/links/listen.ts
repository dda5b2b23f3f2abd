import { z } from 'zod';
import { type DescriptorBundle, type NativeStreamListener, native } from '../binding/native.js';
import { localError, messageOf } from '../common/errors.js';

/** Addresses that only this host can reach. */
export const LOOPBACK = /^(127(\.\d{1,3}){3}|::1|localhost)$/;

const streamPath = z.strictObject({ path: z.string().min(1) });

const streamPort = z
  .strictObject({
    host: z.string().min(1).default('127.0.0.1'),
    port: z.number().int().min(0).max(65535),
    /** Secret that every peer has to show. */
    token: z.string().min(16).max(1024).optional(),
  })
  .refine((listen) => LOOPBACK.test(listen.host) || listen.token !== undefined, {
    path: ['token'],
    message: 'needed for an address that is not loopback',
  });

/** Where streams are taken: host and port, or the path of a Unix socket. Beyond loopback a token is needed. */
export const streamListens = z.array(z.union([streamPath, streamPort])).max(16);

export type StreamListen = z.output<typeof streamListens>[number];

/** A stream that has said what it is for. */
export type StreamHandler = (hello: Uint8Array, stream: DescriptorBundle, token: string | undefined) => void;

/** Listens at every address. Throws KVSS_BAD_CONFIG that names `key` and which of them cannot be listened at. */
export function listenForStreams(
  listens: readonly StreamListen[],
  key: string,
  onStream: StreamHandler,
): NativeStreamListener[] {
  const listeners: NativeStreamListener[] = [];
  for (const [index, listen] of listens.entries()) {
    const [hostOrPath, port] = 'path' in listen ? [listen.path, null] : [listen.host, listen.port];
    const token = 'token' in listen ? listen.token : undefined;
    try {
      listeners.push(new native.StreamListener(hostOrPath, port, (hello, stream) => onStream(hello, stream, token)));
    } catch (thrown) {
      for (const listener of listeners) listener.close();
      throw localError('KVSS_BAD_CONFIG', `'${key}.${index}': ${messageOf(thrown)}`, thrown);
    }
  }
  return listeners;
}
