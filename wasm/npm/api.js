// The exports of the module speak text and JSON; here they become objects. Types: index.d.ts.
import * as core from './vdkr_core.js';

export const parseReference = (text) => JSON.parse(core.parseReference(text));

export const isImageId = (text) => core.isImageId(text);

export const pullCandidates = (name, registry) => JSON.parse(core.pullCandidates(name, registry ?? ''));

export const resolveLocal = (name, stored, registry) =>
  JSON.parse(core.resolveLocal(name, registry ?? '', [...stored]));

export const translateLoopback = (url, gateway) => core.translateLoopback(url, gateway ?? '');

export const tags = (strategies, { timestamp, sha, branch, version, arch } = {}) =>
  JSON.parse(
    core.tags(
      Array.isArray(strategies) ? strategies.join(' ') : strategies,
      ...[timestamp, sha, branch, version, arch].map((fact) => fact ?? ''),
    ),
  );

export const deployName = (name, machine) => JSON.parse(core.deployName(name, machine ?? ''));
