// The lines that promises hang on. `npm run mutate` takes out one after the other and sees to it that a test fails: see
// scripts/mutate.mjs. An entry has a name, the file and the exact text of the line, which is there once, and what stands
// there without it; the promise that it protects (docs/ARCHITECTURE.md; P1 never wrong bytes, P2 never somebody else's,
// P3 never stuck, P4 a hit stays readable, P5 no durability, P6 exact matching), and the tests that notice, the cheapest
// first. `also` has further changes that belong to the same line, `hangs` says that standing still is how it is noticed.

import { daemon } from './mutants/daemon.mjs';
import { driver } from './mutants/driver.mjs';
import { engine } from './mutants/engine.mjs';
import { groupLines } from './mutants/groups.mjs';
import { links } from './mutants/links.mjs';
import { onnx } from './mutants/onnx.mjs';
import { orders } from './mutants/orders.mjs';
import { policies } from './mutants/policies.mjs';
import { prefixes } from './mutants/prefixes.mjs';
import { resume } from './mutants/resume.mjs';
import { store } from './mutants/store.mjs';
import { stripes } from './mutants/stripes.mjs';

export const mutants = [
  ...orders,
  ...store,
  ...engine,
  ...links,
  ...prefixes,
  ...stripes,
  ...driver,
  ...groupLines,
  ...policies,
  ...resume,
  ...daemon,
  ...onnx,
];
