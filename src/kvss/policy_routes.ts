import type { FastifyError, FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import { KvssError } from '../common/errors.js';
import { checkIsolationId, parseTenantPolicy, type TenantPolicyInput } from '../common/tenant_policy.js';
import { LOOPBACK } from '../links/listen.js';
import { sameSecret } from '../links/tickets.js';
import type { PolicyStore } from './policy_store.js';

/** What the routes under /v1 are about. */
export interface PolicyApi {
  readonly policies: PolicyStore;
  /** Secret that every request under /v1 has to show as a bearer token. */
  readonly token?: string;
}

/** A policy has a handful of keys. */
const POLICY_BYTES = 16_384;
/** All policies that a daemon takes, with names of any letters. */
const LIST_BYTES = 8 * 2 ** 20;

const HTTP_STATUS: Readonly<Record<string, number>> = {
  KVSS_BAD_INPUT: 400,
  KVSS_UNAUTHORIZED: 401,
  KVSS_NOT_ALLOWED: 403,
  KVSS_NOT_FOUND: 404,
  KVSS_LIMIT_EXCEEDED: 409,
};

/** Every refusal looks like this. The message names the key; it never repeats what a request carried besides. */
function answerError(reply: FastifyReply, status: number, code: string, message: string): FastifyReply {
  return reply.code(status).send({ error: { code, message } });
}

/** Answers requests whose URL no route could be looked up for. */
export function answerBadUrl(_error: FastifyError, _request: FastifyRequest, reply: FastifyReply): void {
  answerError(reply, 400, 'KVSS_BAD_INPUT', 'the path of the URL is not percent-encoded UTF-8');
}

function answerThrown(thrown: unknown, reply: FastifyReply): FastifyReply {
  if (thrown instanceof KvssError) {
    return answerError(reply, HTTP_STATUS[thrown.code] ?? 500, thrown.code, thrown.message);
  }
  const { statusCode = 500, code } = thrown as Partial<FastifyError>;
  if (statusCode === 413) return answerError(reply, 413, 'KVSS_LIMIT_EXCEEDED', 'the body is too long');
  if (statusCode === 415) {
    return answerError(reply, 415, 'KVSS_BAD_INPUT', 'the body must be JSON, with content-type: application/json');
  }
  if (statusCode < 500) {
    const message = code === 'FST_ERR_CTP_EMPTY_JSON_BODY' ? 'the body is empty' : 'the body is not JSON';
    return answerError(reply, 400, 'KVSS_BAD_INPUT', message);
  }
  return answerError(reply, 500, 'KVSS_INTERNAL', 'the daemon failed to do this');
}

/** Why a request may not do anything here; undefined where it may. */
function refusalOf(request: FastifyRequest, host: string, token: string | undefined): KvssError | undefined {
  if (token === undefined) {
    if (!LOOPBACK.test(host)) {
      return new KvssError(
        'KVSS_NOT_ALLOWED',
        'policies on an address beyond loopback need adminToken to be configured',
      );
    }
    // A page in a browser can have its own name resolve to this address; then the name is here.
    const named = (request.headers.host ?? '').replace(/:\d+$/, '').replace(/^\[|\]$/g, '');
    if (!LOOPBACK.test(named)) {
      return new KvssError('KVSS_NOT_ALLOWED', "the request's Host is not a loopback address");
    }
    return undefined;
  }
  const [, shown = ''] = /^bearer +(\S+)$/i.exec(request.headers.authorization ?? '') ?? [];
  if (sameSecret(token, shown)) return undefined;
  return new KvssError('KVSS_UNAUTHORIZED', 'the admin token is needed, as Authorization: Bearer');
}

/** Adds GET, PUT and DELETE of policies under /v1 to a server that listens at `host`. */
export function addPolicyRoutes(server: FastifyInstance, host: string, { policies, token }: PolicyApi): void {
  server.register(
    async (scope) => {
      // JSON and nothing else: text is what a form on a web page can send without being asked.
      scope.removeContentTypeParser('text/plain');
      scope.setErrorHandler((thrown, _request, reply) => answerThrown(thrown, reply));
      scope.addHook('onRequest', async (request, reply) => {
        const refusal = refusalOf(request, host, token);
        if (!refusal) return;
        if (refusal.code === 'KVSS_UNAUTHORIZED') reply.header('www-authenticate', 'Bearer');
        throw refusal;
      });
      scope.setNotFoundHandler((_request, reply) =>
        answerError(reply, 404, 'KVSS_NOT_FOUND', 'there is no such route under /v1'),
      );

      scope.get('/policies', async () => policies.list());
      scope.put('/policies', { bodyLimit: LIST_BYTES }, async (request) => ({
        version: await policies.replace(bodyOf(request)),
      }));
      scope.get('/default-policy', async () => policies.default);
      scope.put('/default-policy', { bodyLimit: POLICY_BYTES }, async (request) => {
        await policies.setDefault(bodyOf(request) as TenantPolicyInput);
        return policies.default;
      });
      scope.get('/policies/:isolationId', async (request) => {
        const isolationId = tenantOf(request);
        const policy = policies.get(isolationId);
        if (!policy) throw notFound(isolationId);
        return policy;
      });
      scope.put('/policies/:isolationId', { bodyLimit: POLICY_BYTES }, async (request) => {
        const isolationId = tenantOf(request);
        const policy = parseTenantPolicy(bodyOf(request));
        await policies.set(isolationId, policy);
        return policy;
      });
      scope.delete('/policies/:isolationId', async (request, reply) => {
        const isolationId = tenantOf(request);
        if (!(await policies.delete(isolationId))) throw notFound(isolationId);
        return reply.code(204).send();
      });
    },
    { prefix: '/v1' },
  );
}

function tenantOf(request: FastifyRequest): string {
  return checkIsolationId((request.params as { isolationId: string }).isolationId);
}

function bodyOf(request: FastifyRequest): unknown {
  if (request.body === undefined) throw new KvssError('KVSS_BAD_INPUT', 'the body is missing');
  return request.body;
}

function notFound(isolationId: string): KvssError {
  return new KvssError(
    'KVSS_NOT_FOUND',
    `${JSON.stringify(isolationId)} has no policy of its own; the default applies`,
  );
}
