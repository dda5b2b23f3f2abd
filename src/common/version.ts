import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

/** Root of the package, with a slash at the end. */
export const PACKAGE_ROOT = fileURLToPath(new URL('../../', import.meta.url));

const description = JSON.parse(readFileSync(`${PACKAGE_ROOT}package.json`, 'utf8')) as { version: string };

/** Version of the package. */
export const VERSION = description.version;
