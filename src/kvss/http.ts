import { fastify } from 'fastify';
import type { Registry } from 'prom-client';
import { localError, messageOf } from '../common/errors.js';
import { addPolicyRoutes, answerBadUrl, type PolicyApi } from './policy_routes.js';

/** The admin endpoint: the only place where HTTP is served. */
export interface AdminServer {
  readonly url: string;
  close(): Promise<void>;
}

/**
 * Serves GET /metrics (Prometheus text), /healthz (200 while the process can answer) and /readyz (200 while new
 * sessions are welcome, else 503), and the policies under /v1.
 */
export async function startAdminServer(
  address: { host: string; port: number },
  metrics: Registry,
  ready: () => boolean,
  api?: PolicyApi,
): Promise<AdminServer> {
  const server = fastify({
    forceCloseConnections: true,
    // Percent signs make a name of 256 characters up to 9 times as long.
    routerOptions: { maxParamLength: 4096 },
    frameworkErrors: answerBadUrl,
  });
  if (api) addPolicyRoutes(server, address.host, api);
  server.get('/metrics', async (_request, reply) => reply.type(metrics.contentType).send(await metrics.metrics()));
  server.get('/healthz', async () => ({ status: 'ok' }));
  server.get('/readyz', async (_request, reply) =>
    ready() ? { status: 'ready' } : reply.code(503).send({ status: 'draining' }),
  );
  try {
    const url = await server.listen(address);
    return { url, close: () => server.close() };
  } catch (cause) {
    await server.close();
    throw localError(
      'KVSS_BAD_CONFIG',
      `'http.port': cannot listen on ${address.host}:${address.port}: ${messageOf(cause)}`,
      cause,
    );
  }
}
