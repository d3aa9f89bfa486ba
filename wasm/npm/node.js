// Entry for node: the module is read and ready as soon as this file is imported.
import { readFileSync } from 'node:fs';
import { initSync } from './vdkr_core.js';

initSync({ module: readFileSync(new URL('./vdkr_core_bg.wasm', import.meta.url)) });

export * from './api.js';

export default async function init() {}
