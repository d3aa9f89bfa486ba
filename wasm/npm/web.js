// Entry for browsers and bundlers: await the default export once before anything else.
import load from './vdkr_core.js';

export * from './api.js';

export default async function init(source) {
  await load(source === undefined ? undefined : { module_or_path: source });
}
