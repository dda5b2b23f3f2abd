import { spawn } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { describe, expect, test } from 'vitest';
import { finish } from './support.js';

const root = fileURLToPath(new URL('../../', import.meta.url));

const run = (...args: string[]) =>
  finish(spawn(process.execPath, args, { cwd: root, stdio: ['ignore', 'pipe', 'pipe'] }));

/** Of what each example prints, what it is there to show. */
const TELLING: Record<string, readonly string[]> = {
  onnx: [
    '2048 bytes a token, room for 200 columns',
    '0 of 500 tokens cached, 40 generated',
    '512 of 543 tokens cached, 40 generated',
    '448 of 500 tokens cached, 40 generated',
    'the same answer: true',
    'by hand: 448 tokens cached, the sequence has 503',
    'with a draft: the same answer: true',
    'some proposals were accepted: true',
  ],
  resume: ['the first process stored 10 columns and is killed', 'the second one found 10 of them, 10 are right'],
  hello: [
    'cold: 0 of 1000 tokens from the cache, 15 columns stored, 0 were there',
    'decoded 100 tokens: 2 columns more',
    'next turn: 1088 of 1150 tokens from the cache, 0 columns stored, 17 were there',
    'another tenant: 0 of 1150 tokens from the cache',
  ],
  groups_and_windows: [
    'stored 20 columns',
    '1280 of 1280 tokens: full 0 to 19, sliding 16 to 19, draft 0 to 14 (960 tokens)',
    '640 of 700 tokens: full 0 to 9, sliding 6 to 9, draft 0 to 9 (640 tokens)',
  ],
  model_from_config: [
    'target with draft: 81920 bytes a token',
    'sliding: 12 layers in bf16, 24576 bytes a token, sees 128',
    'draft: 0 + 16384',
    'room for 16 columns, 10 stored, 2097152 + 1048576 bytes each',
    "KVSS_BAD_INPUT: config.json: 'layer_types.0'",
  ],
  speculative_decoding: [
    'before the verdict: 0 stored, 2 written ahead, 64 tokens can be found',
    'after the verdict: 80 tokens can be found, the sequence has 85',
    'all accepted: 112 of 115 tokens can be found',
    '14 of 14 parts are right',
  ],
  eviction_policy: [
    'lru: room for 10 columns',
    'still there: 4 columns of prompt 1, 2 of prompt 2, 4 of prompt 3',
    'prompt 4: stored 0, dropped 4',
    '6 columns made room, 4 found none',
  ],
  tenant_policies: [
    'acme stored 4 columns of 32 KiB and has 4',
    'expired: 256 tokens, 0 columns are left',
    'globex stored 0 columns',
    "a misspelt key: 400 KVSS_BAD_INPUT: policy: unknown key 'nostore'",
    'initech stored 3 columns of 10',
    'forgot 3 columns',
  ],
  multimodal: [
    'cat again: 640 tokens from the cache, 10 columns are right',
    'dog: 256 tokens from the cache, 4 columns are right',
    'dog again: 640 tokens from the cache, 10 columns are right',
    'KVSS_BAD_INPUT: spans[0].length',
  ],
  accounting: [
    'missed: neverStored 448, partial 52',
    'missed: otherTenant 448, partial 52',
    'missed: evicted',
    'kvss:evict: 7 stored, 0 present, 0 dropped',
    'hits and misses make up the whole: true',
  ],
  metrics: [
    'kvss_driver_refill_seconds (histogram)',
    'tenant_class="gold"} 1000',
    'tenant_class="gold",cause="neverStored"} 448',
    'tenant_class="default",cause="otherTenant"} 448',
  ],
  own_memory: [
    'stored 10 columns',
    'matched 10 columns, restored 8 at places 0 1 2 3 4 5 6 7, 8 are right',
    '884736 bytes of pieces crossed the streams',
  ],
};

describe('the examples', () => {
  // At once: most of what they take is that Node starts.
  test.concurrent.each(Object.keys(TELLING))('%s runs, cleans up and shows what it is there to show', async (name) => {
    const { stdout, ...ended } = await run(`examples/${name}.mjs`);
    expect(ended).toEqual({ code: 0, signal: null, stderr: '' });
    expect(TELLING[name]?.filter((line) => !stdout.includes(line))).toEqual([]);
  });

  test('are all run', () => {
    // Folders have tests of their own: chat.test.ts, and those of test/cluster.
    const names = readdirSync(`${root}examples`).flatMap((name) => /^(.*)\.mjs$/.exec(name)?.[1] ?? []);
    expect(names.sort()).toEqual(Object.keys(TELLING).sort());
  });
});

const GUIDES = ['EMBEDDING.md', 'ONNX.md'];
const guideOf = (file: string) => readFileSync(`${root}docs/${file}`, 'utf8');

test('the guides show every example as it is', async () => {
  expect(await run('scripts/embed-examples.mjs', '--check')).toMatchObject({ code: 0, stderr: '' });
  const guides = GUIDES.map(guideOf).join('\n');
  for (const name of Object.keys(TELLING)) expect(guides).toContain(`<!-- example: ${name} `);
});

describe.each(GUIDES)('the guide %s', (file) => {
  const guide = guideOf(file);

  test('has no code that is in no example', () => {
    const marked = [...guide.matchAll(/<!-- example: \S+ \S+ -->\n```js/g)];
    expect(marked.length).toBeGreaterThan(0);
    expect(guide.match(/^```\S/gm)).toHaveLength(marked.length);
  });

  test('names only files and sections that exist', () => {
    const links = [...guide.matchAll(/\]\(([^)#:]*)(?:#([^)]*))?\)/g)];
    expect(links.length).toBeGreaterThan(3);
    for (const [link, other, section] of links) {
      const path = `${root}docs/${other === '' ? file : other}`;
      expect(existsSync(path), link).toBe(true);
      if (section === undefined) continue;
      const titles = [...readFileSync(path, 'utf8').matchAll(/^#+ (.*)$/gm)].map(([, title = '']) =>
        title
          .toLowerCase()
          .replace(/[^\w\- ]/g, '')
          .replaceAll(' ', '-'),
      );
      expect(titles, link).toContain(section);
    }
  });
});
