#!/usr/bin/env node
// Writes docs/API.md from the types and doc comments of what the package exports. `--check` writes nothing, and fails
// where the file is stale. Fails where something that is exported has no doc comment.
//
// Uses the API of the compiler that builds the package. It is unstable: the lockfile says which version this is made for.
import { readFileSync, writeFileSync } from 'node:fs';
import { relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import { SyntaxKind } from 'typescript/unstable/ast';
import { API, SymbolFlags } from 'typescript/unstable/sync';

const root = fileURLToPath(new URL('..', import.meta.url));
const target = `${root}docs/API.md`;

/** What the sections are called, by the folder that the declarations are in. */
const SECTIONS = [
  ['The driver', /^src\/swdriver\//],
  ['Shared', /^src\/(common|proto)\//],
  ['The daemon', /^src\/kvss\//],
  ['Links and carriers', /^src\/links\//],
  ['Emulated networks', /^src\/wafer\//],
  ['ONNX Runtime: `kvss/onnx`', /^src\/runtimes\/onnx\//],
  ['Demo models: `kvss/demo-model`', /^src\/runtimes\/demo_model\//],
];
const KINDS = ['class', 'function', 'interface', 'type', 'const'];
const NO_TRUNCATION = 1;

const api = new API({ cwd: root });
const project = api.updateSnapshot({ openProject: `${root}tsconfig.build.json` }).getProjects()[0];
const { checker, program } = project;
const undocumented = [];

/** The modules that package.json exports. */
const ENTRIES = ['src/index.ts', 'src/runtimes/onnx/index.ts', 'src/runtimes/demo_model/generate.ts'];
const everything = ENTRIES.flatMap((entry) =>
  checker.getExportsOfModule(checker.getSymbolAtLocation(program.getSourceFile(root + entry))),
);
const exportedNames = new Set(everything.map(({ name }) => name));
const sections = new Map(SECTIONS.map(([title]) => [title, []]));

/** Text of the last doc comment before a node; tags are left to `isInternal`. */
function docOf(node) {
  const { text } = node.getSourceFile();
  const comments = text.slice(node.pos, node.getStart()).match(/\/\*\*[\s\S]*?\*\//g);
  return cleanDoc(comments?.at(-1) ?? '');
}

function cleanDoc(comment) {
  return comment
    .replace(/^\/\*\*\s*|\s*\*\/$/g, '')
    .replace(/^[ \t]*\*[ \t]?/gm, '')
    .trim();
}

const isInternal = (doc) => doc.startsWith('@internal');
const modifiersOf = (node) => (node.modifiers ?? []).map(({ kind }) => kind);
const isHidden = (node) =>
  modifiersOf(node).some((kind) => kind === SyntaxKind.PrivateKeyword || kind === SyntaxKind.ProtectedKeyword) ||
  node.name?.kind === SyntaxKind.PrivateIdentifier ||
  isInternal(docOf(node));

/** The declaration without its body, its first value and its comments, in one line. */
function signatureOf(node) {
  const { text } = node.getSourceFile();
  const end = (node.body ?? node.initializer)?.getStart() ?? node.end;
  let signature = text
    .slice(node.getStart(), end)
    .replace(/\/\*\*[\s\S]*?\*\//g, '')
    .replace(/\/\/.*$/gm, '')
    .replace(/\s+/g, ' ')
    .replace(/[\s=;{]+$/, '')
    .replace(/^(export |async |override |public )+|\b(async|override) /g, '')
    .replace(/([([]) /g, '$1')
    .replace(/,? ([)\]])/g, '$1');
  const typed = node.type !== undefined || node.kind === SyntaxKind.Constructor;
  if (!typed && node.name) {
    const type = checker.getTypeOfSymbol(checker.getSymbolAtLocation(node.name));
    signature += `: ${checker.typeToString(type, node, NO_TRUNCATION)}`;
  }
  return signature;
}

function item(signature, doc) {
  const text = doc === '' ? '' : `\n${doc.replace(/^(?=.)/gm, '  ')}`;
  return `- \`${signature}\`${text}\n`;
}

/** The declaration of a type of this package that is not exported. */
function hiddenDeclaration(type) {
  const symbol = checker.getTypeFromTypeNode(type)?.getSymbol();
  const declaration = symbol?.declarations[0]?.resolve();
  const ours = declaration?.getSourceFile().fileName.startsWith(`${root}src/`);
  return ours && !exportedNames.has(symbol.name) ? declaration : undefined;
}

/** What a class or an interface extends and implements, as far as others can see it. */
function heritageOf(node) {
  const clauses = (node.heritageClauses ?? []).map((clause) => {
    const types = clause.types.filter((type) => !hiddenDeclaration(type)).map((type) => type.getText());
    const word = clause.token === SyntaxKind.ExtendsKeyword ? 'extends' : 'implements';
    return types.length === 0 ? '' : ` ${word} ${types.join(', ')}`;
  });
  return clauses.join('');
}

/** Members of a class or an interface that others may use, in the order of the source. */
function membersOf(node, name) {
  const extended = (node.heritageClauses ?? []).filter(({ token }) => token === SyntaxKind.ExtendsKeyword);
  const hidden = extended.flatMap(({ types }) => types.map(hiddenDeclaration)).filter((base) => base !== undefined);
  const items = hidden.flatMap((base) => membersOf(base, name));
  for (const member of node.members) {
    if (member.kind === SyntaxKind.Constructor) {
      for (const parameter of member.parameters) {
        if (modifiersOf(parameter).length === 0 || isHidden(parameter)) continue;
        items.push(item(signatureOf(parameter), docOf(parameter)));
      }
    }
    if (isHidden(member)) continue;
    // Every Disposable has them.
    if (member.name?.kind === SyntaxKind.ComputedPropertyName) continue;
    const signature = signatureOf(member).replace(
      /^constructor(.*)/,
      (_, rest) => `new ${name}${rest.replace(/\b(readonly|private) /g, '')}`,
    );
    items.push(item(signature, docOf(member)));
  }
  return items;
}

/** Properties of a type that is computed from a schema, those of objects in it by their path. */
function propertiesOf(type, node, path = '') {
  const items = [];
  for (const property of checker.getPropertiesOfType(type)) {
    const its = checker.getTypeOfSymbol(property);
    const plain = checker.getNonNullableType(its);
    const mark = (property.flags & SymbolFlags.Optional) === 0 ? '' : '?';
    const written = checker.typeToString(plain, node, NO_TRUNCATION);
    const doc = property.getDocumentationComment(checker).trim();
    items.push(item(`${path}${property.name}${mark}: ${written}`, doc));
    const isArray = checker.isArrayType(plain);
    const inner = isArray ? checker.getTypeArguments(plain) : (plain.getTypes?.() ?? [plain]);
    for (const each of inner) {
      if (!checker.typeToString(each, node, NO_TRUNCATION).startsWith('{')) continue;
      items.push(...propertiesOf(each, node, `${path}${property.name}${isArray ? '[]' : ''}.`));
    }
  }
  return items;
}

const code = (text) => `\`\`\`ts\n${text}\n\`\`\`\n`;

function describe(name, node) {
  const statement = node.kind === SyntaxKind.VariableDeclaration ? node.parent.parent : node;
  const doc = docOf(statement);
  if (doc === '') undocumented.push(name);
  const parts = [`### ${name}\n`, `${doc}\n`];
  const heritage = heritageOf(node);
  switch (node.kind) {
    case SyntaxKind.ClassDeclaration:
      parts.push(code(`class ${name}${heritage}`), membersOf(node, name).join(''));
      return { kind: 'class', parts };
    case SyntaxKind.InterfaceDeclaration:
      parts.push(code(`interface ${name}${heritage}`), membersOf(node, name).join(''));
      return { kind: 'interface', parts };
    case SyntaxKind.FunctionDeclaration:
      parts.push(code(signatureOf(node)));
      return { kind: 'function', parts };
    case SyntaxKind.VariableDeclaration:
      parts.push(code(`const ${signatureOf(node)}`));
      return { kind: 'const', parts };
    case SyntaxKind.TypeAliasDeclaration: {
      const text = node.getText().replace(/^export /, '');
      if (/= z\.(infer|input|output)</.test(text)) {
        const type = checker.getDeclaredTypeOfSymbol(checker.getSymbolAtLocation(node.name));
        parts.push(propertiesOf(type, node).join(''));
      } else {
        parts.push(code(text));
      }
      return { kind: 'type', parts };
    }
    default:
      throw new Error(`${name}: no idea how to describe a ${SyntaxKind[node.kind]}`);
  }
}

for (const exported of everything) {
  const symbol = (exported.flags & SymbolFlags.Alias) === 0 ? exported : checker.getAliasedSymbol(exported);
  const node = symbol.declarations[0].resolve();
  const path = relative(root, node.getSourceFile().fileName);
  const [title] = SECTIONS.find(([, folder]) => folder.test(path)) ?? [];
  if (title === undefined) throw new Error(`${exported.name}: ${path} is in no section`);
  sections.get(title).push({ name: exported.name, ...describe(exported.name, node) });
}
api.close();

const rank = ({ kind }) => KINDS.indexOf(kind);
const anchor = (name) => name.toLowerCase();
const lines = [
  '# API reference\n',
  'What the package exports. Made from the doc comments by `npm run docs:api`; do not edit it. [EMBEDDING.md](EMBEDDING.md)',
  'shows how the parts go together.\n',
];
for (const [title, entries] of sections) {
  entries.sort((a, b) => rank(a) - rank(b) || (a.name < b.name ? -1 : 1));
  lines.push(`**${title}:** ${entries.map(({ name }) => `[${name}](#${anchor(name)})`).join(', ')}\n`);
}
for (const [title, entries] of sections) {
  lines.push(`## ${title}\n`);
  for (const { parts } of entries) lines.push(...parts.filter((part) => part !== ''));
}
const text = `${lines.join('\n').trimEnd()}\n`;

if (undocumented.length > 0) {
  console.error(`without a doc comment: ${undocumented.join(', ')}`);
  process.exitCode = 1;
} else if (!process.argv.includes('--check')) {
  writeFileSync(target, text);
} else if (text !== readFileSync(target, 'utf8')) {
  console.error('docs/API.md is stale: npm run docs:api');
  process.exitCode = 1;
}
