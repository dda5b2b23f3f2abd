import { defineConfig } from 'vitest/config';

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    // Daemons, their engines and native test programs share two cores: files run two at a time.
    maxWorkers: 2,
    pool: 'forks',
    testTimeout: 60_000,
    hookTimeout: 60_000,
    // Not for children only: test files load ONNX Runtime themselves.
    env: { ORT_DISABLE_TELEMETRY: '1' },
    reporters: ['default', './test/summary_reporter.ts'],
  },
});
