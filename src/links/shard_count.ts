import type { Connector } from './link.js';

/** How many shards the daemon at an address has. Rejects as connecting to it does. */
export async function shardCountOf(connector: Connector, address: string, deadlineMs: number): Promise<number> {
  const connection = await connector(address, deadlineMs);
  await connection.close();
  return connection.shards.length;
}
