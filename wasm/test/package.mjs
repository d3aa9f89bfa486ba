// Where the built package is, and the tables that the Rust tests read as well.
import { readFileSync } from 'node:fs';
import { pathToFileURL } from 'node:url';

const built = process.env.VDKR_CORE_PACKAGE;

export const packageDir = built
  ? pathToFileURL(`${built}/`)
  : new URL('../../target/wasm/pkg/', import.meta.url);

export const table = (name) =>
  JSON.parse(readFileSync(new URL(`../../core/tables/${name}.json`, import.meta.url), 'utf8'));

export const inPackage = (name) => new URL(name, packageDir);
