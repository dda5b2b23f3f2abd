import { readFileSync, rmSync } from 'node:fs';
import { request as httpRequest } from 'node:http';
import { Registry } from 'prom-client';
import { describe, expect, test } from 'vitest';
import { tenantDigest } from '../../src/common/tenant_policy.js';
import { connectorFor, type DaemonConnection, KvssDaemon, SwDriver, TenantPolicies } from '../../src/index.js';
import { startAdminServer } from '../../src/kvss/http.js';
import { PolicyStore } from '../../src/kvss/policy_store.js';
import { ControlClient } from '../../src/links/control_client.js';
import { MAX_POLICIES, MAX_POLICIES_PER_FRAME } from '../../src/proto/generated.js';
import { kvss, MODEL, Scratch, TestDaemon, until } from './support.js';

const TOKEN = 'an-admin-token-of-32-characters!';
const OPTIONS = { wioStreams: 1, placeBytes: 2 ** 20, checksums: false };

/** Asks the API; a body that is no string is sent as JSON. */
async function ask(
  daemon: { adminUrl: string | undefined },
  method: string,
  path: string,
  body?: unknown,
  headers: Record<string, string> = {},
): Promise<{ status: number; body: unknown }> {
  const response = await fetch(`${daemon.adminUrl}${path}`, {
    method,
    headers: { ...(body === undefined ? {} : { 'content-type': 'application/json' }), ...headers },
    ...(body === undefined ? {} : { body: typeof body === 'string' ? body : JSON.stringify(body) }),
  });
  const text = await response.text();
  return { status: response.status, body: text === '' ? undefined : JSON.parse(text) };
}

const refusal = (code: string, message: string) => ({ error: { code, message: expect.stringContaining(message) } });
const digestOf = (isolationId: string) => tenantDigest(isolationId).toString('hex');

const connect = (address: string): Promise<DaemonConnection> => connectorFor(OPTIONS)(address, 10_000);

describe('the policy API', () => {
  test('gets, puts, lists and deletes policies', async () => {
    using scratch = new Scratch();
    await using daemon = await TestDaemon.start(scratch.file('s'), { shards: 1 });
    expect(await ask(daemon, 'GET', '/v1/policies')).toEqual({
      status: 200,
      body: { version: 0, default: {}, policies: [] },
    });
    expect(await ask(daemon, 'GET', '/v1/policies/acme')).toEqual({
      status: 404,
      body: refusal('KVSS_NOT_FOUND', '"acme" has no policy of its own; the default applies'),
    });
    const policy = { ttl: { mode: 'last-use', seconds: 3600 }, quotaBytes: 2 ** 30, tenantClass: 'gold' };
    expect(await ask(daemon, 'PUT', '/v1/policies/acme', { ...policy, quotaBytes: '1GiB' })).toEqual({
      status: 200,
      body: policy,
    });
    expect(await ask(daemon, 'GET', '/v1/policies/acme')).toEqual({ status: 200, body: policy });
    expect(await ask(daemon, 'PUT', '/v1/default-policy', { storeUpTo: 2048 })).toMatchObject({ status: 200 });
    expect(await ask(daemon, 'GET', '/v1/default-policy')).toEqual({ status: 200, body: { storeUpTo: 2048 } });
    const odd = 'a/b ü?#%\u{1f98a}__proto__';
    expect(await ask(daemon, 'PUT', `/v1/policies/${encodeURIComponent(odd)}`, {})).toMatchObject({ status: 200 });
    expect(await ask(daemon, 'GET', '/v1/policies')).toEqual({
      status: 200,
      body: {
        version: 3,
        default: { storeUpTo: 2048 },
        policies: [
          { isolationId: 'acme', policy },
          { isolationId: odd, policy: {} },
        ],
      },
    });
    expect(await daemon.metric('kvss_tenant_policies')).toBe(2);
    expect(await ask(daemon, 'DELETE', '/v1/policies/acme')).toEqual({ status: 204, body: undefined });
    expect(await ask(daemon, 'DELETE', '/v1/policies/acme')).toMatchObject({ status: 404 });
    const list = { default: {}, policies: [{ isolationId: 'other', policy: { noStore: true } }] };
    expect(await ask(daemon, 'PUT', '/v1/policies', list)).toMatchObject({ status: 200 });
    expect((await ask(daemon, 'GET', '/v1/policies')).body).toMatchObject(list);
  });

  test('refuses bad input of every kind, names the key, and changes nothing', async () => {
    using scratch = new Scratch();
    await using daemon = await TestDaemon.start(scratch.file('s'), { shards: 1 });
    const json = { 'content-type': 'application/json' };
    const one = '/v1/policies/acme';
    const cases: [string, string, unknown, Record<string, string>, number, string][] = [
      ['PUT', one, { nostore: true }, {}, 400, "unknown key 'nostore'"],
      ['PUT', one, { ttl: { mode: 'last-use', seconds: 0 } }, {}, 400, "'ttl.seconds'"],
      ['PUT', one, [], {}, 400, "'(top level)'"],
      ['PUT', one, 'null', {}, 400, "'(top level)'"],
      ['PUT', one, '{"noStore": tr', {}, 400, 'the body is not JSON'],
      ['PUT', one, '{"__proto__": {"noStore": true}}', {}, 400, 'the body is not JSON'],
      ['PUT', one, '', json, 400, 'the body is empty'],
      ['PUT', one, undefined, {}, 400, 'the body is missing'],
      ['PUT', one, '{}', { 'content-type': 'text/plain' }, 415, 'the body must be JSON'],
      [
        'PUT',
        one,
        'noStore=true',
        { 'content-type': 'application/x-www-form-urlencoded' },
        415,
        'the body must be JSON',
      ],
      ['PUT', one, { tenantClass: 'x'.repeat(20_000) }, {}, 413, 'the body is too long'],
      ['PUT', '/v1/policies/', {}, {}, 400, 'isolationId: a non-empty string'],
      ['PUT', '/v1/policies/a%0Ab', {}, {}, 400, 'isolationId: control characters'],
      ['PUT', `/v1/policies/${'x'.repeat(257)}`, {}, {}, 400, '257 characters are more than 256'],
      ['PUT', '/v1/policies/%ff', {}, {}, 400, 'percent-encoded'],
      ['GET', '/v1/policies/%e0%a4', undefined, {}, 400, 'percent-encoded'],
      [
        'PUT',
        '/v1/policies',
        { policies: [{ isolationId: 'a', policy: { noStore: 3 } }] },
        {},
        400,
        "'policies.0.policy'",
      ],
      ['PUT', '/v1/policies', { policies: { a: {} } }, {}, 400, "'policies'"],
      ['PUT', '/v1/default-policy', { quotaBytes: '5 apples' }, {}, 400, "'quotaBytes'"],
      ['POST', one, {}, {}, 404, 'no such route'],
      ['DELETE', '/v1/policies', undefined, {}, 404, 'no such route'],
      ['DELETE', '/v1/default-policy', undefined, {}, 404, 'no such route'],
      ['GET', '/v1/nothing', undefined, {}, 404, 'no such route'],
    ];
    for (const [method, path, body, headers, status, message] of cases) {
      const answer = await ask(daemon, method, path, body, headers);
      expect([method, path, answer.status]).toEqual([method, path, status]);
      expect(answer.body, `${method} ${path}`).toEqual({
        error: { code: expect.stringMatching(/^KVSS_/), message: expect.stringContaining(message) },
      });
    }
    expect((await ask(daemon, 'GET', '/v1/policies')).body).toEqual({ version: 0, default: {}, policies: [] });
    // A name of 256 characters fits a URL whatever it is made of.
    for (const long of ['漢'.repeat(256), '🦊'.repeat(128)]) {
      expect(await ask(daemon, 'PUT', `/v1/policies/${encodeURIComponent(long)}`, {})).toMatchObject({ status: 200 });
    }
  });

  test('asks for the token where there is one, and tells it to nobody', async () => {
    using scratch = new Scratch();
    const config = scratch.file('config.yaml', `adminToken: "${TOKEN}"\n`);
    const file = scratch.file('policies.json', '{}');
    for (const start of [
      { flags: ['--config', config, '--policy-file', file, '--log-level', 'debug'] },
      { flags: ['--log-level', 'debug'], through: ['env', `KVSS_ADMIN_TOKEN=${TOKEN}`] },
    ]) {
      const daemon = await TestDaemon.start(scratch.file('s'), { shards: 1, ...start });
      const wrong = [
        {},
        { authorization: 'Bearer ' },
        { authorization: `Bearer ${TOKEN}x` },
        { authorization: TOKEN },
        { authorization: `Basic ${TOKEN}` },
      ];
      for (const headers of wrong as Record<string, string>[]) {
        for (const method of ['GET', 'PUT', 'DELETE']) {
          expect(
            await ask(daemon, method, '/v1/policies/acme', method === 'PUT' ? { noStore: true } : undefined, headers),
          ).toEqual({ status: 401, body: refusal('KVSS_UNAUTHORIZED', 'the admin token is needed') });
        }
        expect((await ask(daemon, 'GET', '/v1/policies', undefined, headers)).status).toBe(401);
      }
      // Health and figures are for everybody on this host, as before.
      expect((await fetch(`${daemon.adminUrl}/healthz`)).status).toBe(200);
      expect(await daemon.metric('kvss_tenant_policies')).toBe(0);
      const headers = { authorization: `Bearer ${TOKEN}` };
      expect(await ask(daemon, 'PUT', '/v1/policies/acme', { tenantClass: 'secret-body' }, headers)).toMatchObject({
        status: 200,
      });
      expect((await ask(daemon, 'GET', '/v1/policies/acme', undefined, headers)).status).toBe(200);
      daemon.kill('SIGTERM');
      const { code, stderr, stdout } = await daemon.finished;
      expect(code).toBe(0);
      expect(stderr).toContain('tenant policies changed');
      for (const secret of [TOKEN, 'secret-body', 'acme']) expect(stderr + stdout).not.toContain(secret);
    }
    const short = await kvss(
      'serve',
      '--config',
      scratch.file('short.yaml', 'adminToken: short-secret\n'),
      '--no-http',
    );
    expect(short.stderr).toContain("'adminToken':");
    expect(short.stderr).not.toContain('short-secret');
  });

  test('without a token serves loopback names only, and nobody where it listens beyond', async () => {
    using scratch = new Scratch();
    await using daemon = await TestDaemon.start(scratch.file('s'), { shards: 1 });
    const port = Number(new URL(daemon.adminUrl).port);
    const statusFor = (host: string) =>
      new Promise<number>((resolve, reject) => {
        const asking = httpRequest({ host: '127.0.0.1', port, path: '/v1/policies', headers: { host } }, (answer) => {
          answer.resume();
          resolve(answer.statusCode ?? 0);
        });
        asking.on('error', reject).end();
      });
    expect(await statusFor(`localhost:${port}`)).toBe(200);
    expect(await statusFor('[::1]:80')).toBe(200);
    expect(await statusFor(`evil.example:${port}`)).toBe(403);
    const policies = PolicyStore.open();
    for (const [token, status] of [
      [undefined, 403],
      [TOKEN, 200],
    ] as const) {
      const server = await startAdminServer({ host: '0.0.0.0', port: 0 }, new Registry(), () => true, {
        policies,
        ...(token === undefined ? {} : { token }),
      });
      const adminUrl = `http://127.0.0.1:${new URL(server.url).port}`;
      const answer = await ask({ adminUrl }, 'PUT', '/v1/policies/a', {}, { authorization: `Bearer ${TOKEN}` });
      expect(answer.status).toBe(status);
      if (status === 403) expect(answer.body).toEqual(refusal('KVSS_NOT_ALLOWED', 'need adminToken'));
      await server.close();
    }
  });

  test('keeps policies over a restart, also after a crash, and refuses what it cannot keep', async () => {
    using scratch = new Scratch();
    const file = scratch.file('policies.json', '{}');
    const flags = ['--policy-file', file];
    {
      await using daemon = await TestDaemon.start(scratch.file('s'), { shards: 1, flags });
      expect(await ask(daemon, 'PUT', '/v1/policies/acme', { noStore: true })).toMatchObject({ status: 200 });
      daemon.kill('SIGKILL');
      await daemon.finished;
    }
    await using daemon = await TestDaemon.start(scratch.file('s'), { shards: 1, flags });
    expect(await ask(daemon, 'GET', '/v1/policies/acme')).toEqual({ status: 200, body: { noStore: true } });
    rmSync(scratch.path, { recursive: true });
    const refused = await ask(daemon, 'PUT', '/v1/policies/acme', {});
    expect(refused).toEqual({ status: 500, body: refusal('KVSS_INTERNAL', 'cannot write the policy file') });
    expect(await ask(daemon, 'GET', '/v1/policies/acme')).toEqual({ status: 200, body: { noStore: true } });
  });

  test.each([
    ['is not there', undefined, 'there is no such file'],
    ['was cut off', '{"version": 3, "policies": [', 'policies.json: '],
    [
      'has an unknown key',
      '{"policies": [{"isolationId": "a", "policy": {"nostore": true}}]}',
      "unknown key 'nostore'",
    ],
  ])('a daemon whose file %s does not start, and says so', async (_what, content, complaint) => {
    using scratch = new Scratch();
    const path = scratch.file('policies.json', content);
    const socket = scratch.file('s');
    const refused = await kvss('serve', '--socket', socket, '--no-http', '--budget', '8MiB', '--policy-file', path);
    expect(refused.code).toBe(1);
    expect(refused.stderr).toContain(`'policyFile': ${path}: `);
    expect(refused.stderr).toContain(complaint);
    expect(refused.stderr.match(/KVSS_/g)).toEqual(['KVSS_']);
    if (content !== undefined) expect(readFileSync(path, 'utf8')).toBe(content);
  });
});

describe.each(['shared memory', 'TCP'])('a driver over %s', (link) => {
  const addressOf = (daemon: TestDaemon) =>
    link === 'TCP' ? `tcp://127.0.0.1:${daemon.streamPorts[0]}` : daemon.socket;
  const start = (scratch: Scratch, flags: string[] = []) =>
    TestDaemon.start(scratch.file('s'), { flags: ['--tcp-port', '0', ...flags] });

  test('hears of a change at once, whichever came first, the policy or the driver', async () => {
    using scratch = new Scratch();
    await using daemon = await start(scratch);
    const connection = await connect(addressOf(daemon));
    const policies = new TenantPolicies();
    policies.follow(addressOf(daemon), connection.policies);
    expect([connection.policies.state, policies.policyOf('acme').noStore]).toEqual(['none', false]);
    let changes = 0;
    policies.onChange((change) => {
      changes += change.concerns('acme') ? 1 : 0;
    });
    await ask(daemon, 'PUT', '/v1/policies/acme', { noStore: true, tenantClass: 'gold' });
    await until(() => connection.policies.state === 'known');
    expect(policies.policyOf('acme')).toMatchObject({ noStore: true, pending: false, tenantClass: 'gold' });
    expect(policies.policyOf('other').noStore).toBe(false);
    await ask(daemon, 'PUT', '/v1/policies/acme', { ttl: { mode: 'first-use', seconds: 0.5 } });
    await until(() => policies.policyOf('acme').firstUseSeconds === 0.5);
    expect(policies.policyOf('acme').noStore).toBe(false);
    await ask(daemon, 'PUT', '/v1/default-policy', { noStore: true });
    await until(() => policies.policyOf('other').noStore);
    await ask(daemon, 'DELETE', '/v1/policies/acme');
    await until(() => policies.policyOf('acme').noStore);
    expect(changes).toBeGreaterThanOrEqual(4);

    // The second one is told with its welcome, and may not store until it knows.
    const second = await connect(addressOf(daemon));
    expect(second.policies.expected).toBe(true);
    const late = new TenantPolicies();
    late.follow(addressOf(daemon), second.policies);
    expect(late.policyOf('anyone').noStore).toBe(true);
    await until(() => late.known);
    expect(late.policyOf('anyone')).toMatchObject({ noStore: true, pending: false });
    await Promise.all([connection.close(), second.close()]);
  });

  test('gets more policies than fit into a frame, and keeps up with changes while it reads them', async () => {
    using scratch = new Scratch();
    const policies = Array.from({ length: 5 * MAX_POLICIES_PER_FRAME + 7 }, (_, index) => ({
      isolationId: `tenant ${index}`,
      policy: {
        ttl: { mode: 'first-use', seconds: index + 0.5 },
        quotaBytes: 2 ** 52 - index,
        tenantClass: 'c'.repeat(32),
      },
    }));
    const file = scratch.file('policies.json', JSON.stringify({ policies }));
    await using daemon = await start(scratch, ['--policy-file', file]);
    const connection = await connect(addressOf(daemon));
    const changed = Array.from({ length: 50 }, (_, index) =>
      ask(daemon, 'PUT', `/v1/policies/${encodeURIComponent(`tenant ${index * 7}`)}`, { storeUpTo: index }),
    );
    await Promise.all(changed);
    const { version } = (await ask(daemon, 'GET', '/v1/policies')).body as { version: number };
    await until(() => connection.policies.version === version);
    for (const [index, { isolationId, policy }] of policies.entries()) {
      const wanted = index % 7 === 0 && index < 350 ? { storeUpTo: index / 7 } : policy;
      expect(connection.policies.policyOf(digestOf(isolationId))).toEqual(wanted);
    }
    await connection.close();
  });

  test('that does not read is not ended by any number of changes', async () => {
    using scratch = new Scratch();
    await using daemon = await start(scratch);
    const reading = await connect(addressOf(daemon));
    // A session that is told once, and asks for nothing.
    const { client } = await ControlClient.connect(daemon.socket, 5_000, { policies: true });
    let told = 0;
    client.listenForPolicies(() => {
      told += 1;
    });
    for (let index = 0; index < 300; index += 1) {
      await ask(daemon, 'PUT', `/v1/policies/t${index % 3}`, { storeUpTo: index });
    }
    await until(() => reading.policies.version === 300);
    const { payload } = await client.request('policies', { since: 0, basis: 0 }, 'policiesPage');
    expect([payload.version, payload.entries.length, told]).toEqual([300, 3, 1]);
    await ask(daemon, 'PUT', '/v1/policies/t0', {});
    await until(() => told === 2);
    expect(client.ended).toBe(false);
    client.close();
    await reading.close();
  });
});

describe('a client that does not follow policies', () => {
  test('gets no memory once there are some, and loses what it had', async () => {
    using scratch = new Scratch();
    await using daemon = await TestDaemon.start(scratch.file('s'));
    await using driver = await SwDriver.connect({ daemons: [daemon.socket], model: MODEL });
    const { client } = await ControlClient.connect(daemon.socket, 5_000);
    let reason = '';
    client.onEnd = (why) => {
      reason = why;
    };
    (await client.request('attach', { shard: 0, ringEntries: 8 }, 'attached')).descriptors?.close();
    await ask(daemon, 'PUT', '/v1/policies/acme', { noStore: true });
    await until(() => client.ended);
    expect(reason).toContain('did not say in hello that it follows them');
    const { client: late } = await ControlClient.connect(daemon.socket, 5_000);
    await expect(late.request('attach', { shard: 0, ringEntries: 8 }, 'attached')).rejects.toMatchObject({
      code: 'KVSS_NOT_ALLOWED',
    });
    // Looking is free: kvss stat is such a client.
    expect((await kvss('stat', '--socket', daemon.socket, '--once')).code).toBe(0);
    expect(driver.usable).toBe(true);
    await ask(daemon, 'DELETE', '/v1/policies/acme');
    (await late.request('attach', { shard: 0, ringEntries: 8 }, 'attached')).descriptors?.close();
    late.close();
  });

  test('is served all the same where the configuration says so', async () => {
    using scratch = new Scratch();
    const config = scratch.file('config.yaml', 'unawareDrivers: serve\n');
    await using daemon = await TestDaemon.start(scratch.file('s'), { flags: ['--config', config] });
    const { client } = await ControlClient.connect(daemon.socket, 5_000);
    await ask(daemon, 'PUT', '/v1/policies/acme', { noStore: true });
    (await client.request('attach', { shard: 0, ringEntries: 8 }, 'attached')).descriptors?.close();
    client.close();
  });
});

describe('policies from code', () => {
  test('are checked and pushed as those over HTTP', async () => {
    using scratch = new Scratch();
    await using daemon = await KvssDaemon.start({
      socket: scratch.file('s'),
      shards: [{ budget: '8MiB' }],
      http: false,
      logLevel: 'silent',
      policyFile: scratch.file('policies.json', '{}'),
    });
    const connection = await connect(scratch.file('s'));
    await expect(daemon.policies.set('acme', { storeUpTo: -1 })).rejects.toThrow("'storeUpTo'");
    await daemon.policies.set('acme', { storeUpTo: 640 });
    await until(() => connection.policies.policyOf(digestOf('acme')).storeUpTo === 640);
    await daemon.policies.replace({
      policies: Array.from({ length: MAX_POLICIES }, (_, index) => ({
        isolationId: `t${index}`,
        policy: { noStore: true },
      })),
    });
    await until(() => connection.policies.version === daemon.policies.version);
    expect(connection.policies.policyOf(digestOf('acme'))).toEqual({});
    expect(connection.policies.policyOf(digestOf(`t${MAX_POLICIES - 1}`))).toEqual({ noStore: true });
    await connection.close();
  });
});
