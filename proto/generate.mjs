#!/usr/bin/env node
// Renders proto/kvss.yaml into C++, TypeScript and the tables of docs/PROTOCOL.md.
// Plain JavaScript, because it has to run before anything is compiled.

import { readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { parse } from 'yaml';

const root = new URL('..', import.meta.url);
const SCALARS = { u8: 1, u16: 2, u32: 4, u64: 8 };
const CPP_TYPES = { u8: 'uint8_t', u16: 'uint16_t', u32: 'uint32_t', u64: 'uint64_t' };
const NOTICE = 'Generated from proto/kvss.yaml by `npm run generate`. Do not edit.';

/** Reads the definition and gives every field its offset. Throws where two fields overlap or a size is wrong. */
export function loadDefinition() {
  const definition = parse(readFileSync(new URL('proto/kvss.yaml', root), 'utf8'));
  for (const struct of definition.structs) layOut(struct);
  return definition;
}

function layOut(struct) {
  let cursor = 0;
  for (const field of struct.fields) {
    const array = /^(u8|u16|u32|u64)\[(\d+)\]$/.exec(field.type);
    field.scalar = array ? array[1] : field.type;
    field.count = array ? Number(array[2]) : 1;
    const size = SCALARS[field.scalar];
    if (!size) throw new Error(`${struct.name}.${field.name}: unknown type ${field.type}`);
    const natural = Math.ceil(cursor / size) * size;
    field.offset ??= natural;
    if (field.offset < cursor || field.offset % size !== 0) {
      throw new Error(`${struct.name}.${field.name}: offset ${field.offset} overlaps or is not aligned`);
    }
    cursor = field.offset + size * field.count;
  }
  if (cursor > struct.bytes || struct.bytes % struct.align !== 0) {
    throw new Error(`${struct.name}: ${cursor} bytes of fields do not fit ${struct.bytes} aligned to ${struct.align}`);
  }
}

const snake = (name) => name.replace(/([a-z0-9])([A-Z])/g, '$1_$2').toLowerCase();
const pascal = (name) => name[0].toUpperCase() + name.slice(1);
const screaming = (name) => snake(name).toUpperCase();
const allConstants = (definition) => [...definition.constants, ...definition.limits];
const isPlain = (struct) => struct.fields.every((field) => !field.atomic);

function renderCpp(definition) {
  const out = [
    `// ${NOTICE}`,
    '#pragma once',
    '',
    '#include <atomic>',
    '#include <cstddef>',
    '#include <cstdint>',
    '#include <type_traits>',
    '',
    'namespace kvss::proto {',
    '',
  ];
  for (const constant of allConstants(definition)) {
    out.push(`/// ${constant.doc}`);
    out.push(`inline constexpr ${CPP_TYPES[constant.type]} k${pascal(constant.name)} = ${constant.value}u;`);
  }
  for (const kind of definition.enums) {
    out.push('', `/// ${kind.doc}`, `enum class ${kind.name} : ${CPP_TYPES[kind.type]} {`);
    for (const value of kind.values) out.push(`  k${pascal(value.name)} = ${value.value},  ///< ${value.doc}`);
    out.push('};');
  }
  for (const set of definition.flags) {
    out.push('', `/// ${set.doc}`, `namespace ${snake(set.name)} {`);
    for (const value of set.values) {
      out.push(`inline constexpr uint16_t k${pascal(value.name)} = ${value.value};  ///< ${value.doc}`);
    }
    const mask = set.values.reduce((bits, value) => bits | value.value, 0);
    out.push(`inline constexpr uint16_t kAll = ${mask};`, `}  // namespace ${snake(set.name)}`);
  }
  for (const struct of definition.structs) out.push('', ...renderCppStruct(struct));
  out.push('', '}  // namespace kvss::proto', '');
  return out.join('\n');
}

function renderCppStruct(struct) {
  const out = [`/// ${struct.doc}`, `struct alignas(${struct.align}) ${struct.name} {`];
  for (const field of struct.fields) {
    const scalar = CPP_TYPES[field.scalar];
    const type = field.atomic ? `std::atomic<${scalar}>` : scalar;
    const size = SCALARS[field.scalar];
    // A gap that natural alignment does not make by itself is spelt out, so that the offsets below hold.
    const index = struct.fields.indexOf(field);
    const before = struct.fields[index - 1];
    const end = before ? before.offset + SCALARS[before.scalar] * before.count : 0;
    if (field.offset - end >= size) out.push(`  uint8_t padding_before_${snake(field.name)}[${field.offset - end}];`);
    out.push(`  ${type} ${snake(field.name)}${field.count > 1 ? `[${field.count}]` : ''};  ///< ${field.doc}`);
  }
  const last = struct.fields.at(-1);
  const tail = struct.bytes - (last.offset + SCALARS[last.scalar] * last.count);
  if (tail > 0) out.push(`  uint8_t padding_at_end[${tail}];`);
  out.push('};');
  out.push(`static_assert(sizeof(${struct.name}) == ${struct.bytes});`);
  out.push(`static_assert(alignof(${struct.name}) == ${struct.align});`);
  out.push(`static_assert(std::is_standard_layout_v<${struct.name}>);`);
  if (isPlain(struct)) out.push(`static_assert(std::is_trivially_copyable_v<${struct.name}>);`);
  for (const field of struct.fields) {
    out.push(`static_assert(offsetof(${struct.name}, ${snake(field.name)}) == ${field.offset});`);
  }
  return out;
}

function renderTypeScript(definition) {
  const out = [`// ${NOTICE}`, ''];
  for (const constant of allConstants(definition)) {
    out.push(`/** ${constant.doc} */`, `export const ${screaming(constant.name)} = ${constant.value};`);
  }
  for (const kind of definition.enums) {
    out.push('', `/** ${kind.doc} */`, `export const ${kind.name} = {`);
    for (const value of kind.values) out.push(`  /** ${value.doc} */`, `  ${value.name}: ${value.value},`);
    out.push('} as const;');
    out.push(`export type ${kind.name} = (typeof ${kind.name})[keyof typeof ${kind.name}];`);
    out.push(`export type ${kind.name}Name = keyof typeof ${kind.name};`);
    out.push(
      `const ${screaming(kind.name)}_NAMES: ReadonlyMap<number, ${kind.name}Name> = new Map(`,
      `  (Object.entries(${kind.name}) as [${kind.name}Name, number][]).map(([name, value]) => [value, name]),`,
      ');',
      `/** Name of a ${kind.name} value, or undefined where the protocol has none. */`,
      `export const ${kind.name[0].toLowerCase()}${kind.name.slice(1)}Name = (value: number): ${kind.name}Name | undefined =>`,
      `  ${screaming(kind.name)}_NAMES.get(value);`,
    );
  }
  for (const set of definition.flags) {
    out.push('', `/** ${set.doc} */`, `export const ${set.name} = {`);
    for (const value of set.values) out.push(`  /** ${value.doc} */`, `  ${value.name}: ${value.value},`);
    out.push('} as const;');
  }
  for (const struct of definition.structs) out.push('', ...renderTypeScriptStruct(struct));
  out.push('');
  return out.join('\n');
}

function renderTypeScriptStruct(struct) {
  const out = [`/** Layout of ${struct.name}: byte offsets. ${struct.doc} */`, `export const ${struct.name}Layout = {`];
  out.push(`  bytes: ${struct.bytes},`, `  align: ${struct.align},`, '  offset: {');
  for (const field of struct.fields)
    out.push(`    /** ${field.type}: ${field.doc} */`, `    ${field.name}: ${field.offset},`);
  out.push('  },', '  type: {');
  for (const field of struct.fields) out.push(`    ${field.name}: '${field.type}',`);
  out.push('  },', '} as const;');
  if (!isPlain(struct)) return out;
  const tsType = (field) => (field.scalar === 'u64' ? 'bigint' : 'number');
  const accessor = { u8: 'Uint8', u16: 'Uint16', u32: 'Uint32', u64: 'BigUint64' };
  const trail = (field) => (field.scalar === 'u8' ? '' : ', true');
  out.push('', `/** ${struct.doc} */`, `export interface ${struct.name} {`);
  for (const field of struct.fields) out.push(`  /** ${field.doc} */`, `  ${field.name}: ${tsType(field)};`);
  out.push('}', '', `/** Writes a ${struct.name} at \`at\`; the view must have ${struct.bytes} bytes left. */`);
  out.push(`export function encode${struct.name}(view: DataView, at: number, value: ${struct.name}): void {`);
  for (const field of struct.fields) {
    out.push(`  view.set${accessor[field.scalar]}(at + ${field.offset}, value.${field.name}${trail(field)});`);
  }
  out.push('}', '', `/** Reads the ${struct.name} at \`at\`. Says nothing about whether its values make sense. */`);
  out.push(`export function decode${struct.name}(view: DataView, at: number): ${struct.name} {`, '  return {');
  for (const field of struct.fields) {
    out.push(
      `    ${field.name}: view.get${accessor[field.scalar]}(at + ${field.offset}${field.scalar === 'u8' ? '' : ', true'}),`,
    );
  }
  out.push('  };', '}');
  return out;
}

function renderTables(definition) {
  const out = [];
  const table = (head, rows) => {
    out.push(`| ${head.join(' | ')} |`, `|${head.map(() => '---').join('|')}|`);
    for (const row of rows) out.push(`| ${row.join(' | ')} |`);
    out.push('');
  };
  const hex = (value) => (value > 0xffffff ? `0x${value.toString(16)}` : String(value));
  out.push('### Constants and limits', '');
  table(
    ['name', 'value', 'meaning'],
    allConstants(definition).map((c) => [c.name, hex(c.value), c.doc]),
  );
  for (const kind of definition.enums) {
    out.push(`### ${kind.name} (${kind.type})`, '', kind.doc, '');
    table(
      ['value', 'name', 'meaning'],
      kind.values.map((v) => [v.value, v.name, v.doc]),
    );
  }
  for (const set of definition.flags) {
    out.push(`### ${set.name} (bits)`, '', set.doc, '');
    table(
      ['bit', 'name', 'meaning'],
      set.values.map((v) => [v.value, v.name, v.doc]),
    );
  }
  for (const struct of definition.structs) {
    out.push(`### ${struct.name} (${struct.bytes} bytes, aligned to ${struct.align})`, '', struct.doc, '');
    table(
      ['offset', 'type', 'field', 'meaning'],
      struct.fields.map((f) => [f.offset, f.type + (f.atomic ? ', atomic' : ''), f.name, f.doc]),
    );
  }
  return out.join('\n').trimEnd();
}

const BEGIN = '<!-- generated: tables -->';
const END = '<!-- end of generated -->';

function renderProtocolDoc(definition) {
  const text = readFileSync(new URL('docs/PROTOCOL.md', root), 'utf8');
  const begin = text.indexOf(BEGIN);
  const end = text.indexOf(END);
  if (begin < 0 || end < begin) throw new Error(`docs/PROTOCOL.md: the markers ${BEGIN} and ${END} are missing`);
  return `${text.slice(0, begin + BEGIN.length)}\n\n${renderTables(definition)}\n\n${text.slice(end)}`;
}

/** The golden vectors as C++ cases, so that both languages check the same bytes. */
function renderGoldenHeader(definition) {
  const golden = JSON.parse(readFileSync(new URL('proto/golden.json', root), 'utf8'));
  const out = [
    `// ${NOTICE}`,
    '#pragma once',
    '',
    '#include "proto/kvss_proto.h"',
    '',
    'namespace kvss::golden {',
    '',
    '// Calls visit(name, value, bytes) for every vector of proto/golden.json.',
    'template <typename Visitor>',
    'void ForEachVector(Visitor&& visit) {',
  ];
  for (const vector of golden) {
    const struct = definition.structs.find((candidate) => candidate.name === vector.struct);
    out.push('  {', `    proto::${struct.name} value{};`);
    for (const field of struct.fields) out.push(`    value.${snake(field.name)} = ${vector.fields[field.name]}u;`);
    const bytes = vector.hex.match(/../g).map((byte) => `0x${byte}`);
    out.push(`    static constexpr uint8_t kBytes[${bytes.length}] = {`);
    for (let i = 0; i < bytes.length; i += 16) out.push(`        ${bytes.slice(i, i + 16).join(', ')},`);
    out.push('    };', `    visit("${vector.name}", value, kBytes);`, '  }');
  }
  out.push('}', '', '}  // namespace kvss::golden', '');
  return out.join('\n');
}

/** Every generated file with the text that it should have. */
export function renderAll() {
  const definition = loadDefinition();
  return new Map([
    ['native/proto/kvss_proto.h', renderCpp(definition)],
    ['src/proto/generated.ts', renderTypeScript(definition)],
    ['docs/PROTOCOL.md', renderProtocolDoc(definition)],
    ['test/native/golden_vectors.h', renderGoldenHeader(definition)],
  ]);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  for (const [path, text] of renderAll()) {
    writeFileSync(new URL(path, root), text);
    console.log(path);
  }
}
