// The package itself: its files, its entry for browsers, wrong arguments.
import assert from 'node:assert/strict';
import { existsSync, readFileSync, statSync } from 'node:fs';
import { test } from 'node:test';
import { inPackage } from './package.mjs';

const web = await import(inPackage('web.js'));

test('the entry for browsers takes the bytes of the module', async () => {
  assert.throws(() => web.parseReference('alpine'), 'nothing works before init');
  await web.default(readFileSync(inPackage('vdkr_core_bg.wasm')));
  assert.equal(web.parseReference('alpine').canonical, 'docker.io/library/alpine');
});

test('package.json names files that are there', () => {
  const manifest = JSON.parse(readFileSync(inPackage('package.json'), 'utf8'));
  assert.match(manifest.version, /^\d+\.\d+\.\d+$/);
  assert.notEqual(manifest.version, '0.0.0');
  const { types, node, default: browser } = manifest.exports['.'];
  for (const file of [types, node, browser, manifest.types, manifest.exports['./vdkr_core_bg.wasm'], 'LICENSE', 'README.md']) {
    assert.ok(existsSync(inPackage(file)), file);
  }
});

test('the module is small', () => {
  const { size } = statSync(inPackage('vdkr_core_bg.wasm'));
  assert.ok(size <= 150_000, `${size} bytes`);
});

test('every function has a type', async () => {
  const types = readFileSync(inPackage('index.d.ts'), 'utf8');
  const names = Object.keys(web).filter((name) => name !== 'default');
  assert.ok(names.length >= 7);
  for (const name of names) {
    assert.match(types, new RegExp(`export function ${name}\\(`), name);
  }
});

test('wrong input is an answer, not an exception', async () => {
  await web.default(readFileSync(inPackage('vdkr_core_bg.wasm')));
  for (const text of ['', '\0', '\ud800', '😀/😀', 'a'.repeat(1 << 20), '/'.repeat(1 << 20)]) {
    assert.equal(web.parseReference(text).ok, false);
    assert.equal(web.pullCandidates(text, text).ok, false);
    assert.equal(web.resolveLocal(text, [text]).ok, false);
    assert.equal(web.deployName(text), null);
    assert.equal(typeof web.translateLoopback(text, text), 'string');
  }
  assert.equal(web.pullCandidates('app', 'registry/yocto').error.rule, 'host-ambiguous');
  assert.equal(web.tags('latest newest').error.offset, 7);
  assert.deepEqual(web.tags([]).tags, ['latest']);
});
