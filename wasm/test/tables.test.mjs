// The package gives what the Rust tests expect of the core, row for row.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { inPackage, table } from './package.mjs';

const core = await import(inPackage('node.js'));

test('legal references', () => {
  for (const [text, host, repository, tag, digest, familiar] of table('references').legal) {
    const read = core.parseReference(text);
    assert.equal(read.ok, true, `${text}: ${JSON.stringify(read)}`);
    assert.deepEqual(
      { host: read.host, repository: read.repository, tag: read.tag, digest: read.digest, familiar: read.familiar },
      { host, repository, tag, digest, familiar },
      text,
    );
    const again = core.parseReference(read.canonical);
    assert.deepEqual({ ...again, explicitHost: read.explicitHost }, read, text);
  }
});

test('illegal references', () => {
  for (const [text, byteOffset, rule] of table('references').illegal) {
    const { ok, error } = core.parseReference(text);
    assert.equal(ok, false, text);
    const offset = new TextDecoder().decode(new TextEncoder().encode(text).slice(0, byteOffset)).length;
    assert.deepEqual([error.field, error.offset, error.rule], ['name', offset, rule], text);
    assert.ok(error.message.length > 10);
  }
});

test('pull candidates', () => {
  for (const [name, registry, expected] of table('candidates').pulls) {
    const { candidates } = core.pullCandidates(name, registry);
    assert.deepEqual(candidates.map(({ source, reference }) => `${source} ${reference}`), expected, name);
  }
});

test('stored names', () => {
  const { registry, stored, local } = table('candidates');
  for (const [name, expected] of local) {
    const { kind, names } = core.resolveLocal(name, stored, registry);
    assert.deepEqual(kind === 'id' ? kind : names, expected, name);
    assert.equal(kind, expected === 'id' ? 'id' : (['none', 'name'][expected.length] ?? 'ambiguous'), name);
  }
});

test('loopback translation', () => {
  for (const [url, translated] of table('loopback').urls) {
    assert.equal(core.translateLoopback(url), translated);
  }
});

test('tags', () => {
  const { strategies, versions, branches } = table('tags');
  const facts = {
    timestamp: '20260112-143022',
    sha: 'a1b2c3d',
    branch: 'feature/login',
    version: '1.2.3',
    arch: 'aarch64',
  };
  for (const [words, expected] of strategies) {
    assert.deepEqual(core.tags(words, facts), { ok: true, tags: expected.split(' '), warnings: [] }, words);
  }
  for (const [version, semver, plain] of versions) {
    for (const [strategy, expected] of [['semver', semver], ['version', plain]]) {
      const plan = core.tags([strategy], { version });
      assert.deepEqual(plan.tags, (expected || 'latest').split(' '), `${strategy} of ${version}`);
      assert.equal(plan.warnings.length, expected ? 0 : 1, `${strategy} of ${version}`);
    }
  }
  for (const [branch, tag] of branches) {
    assert.deepEqual(core.tags('branch', { branch }).tags, [tag ?? 'latest'], branch);
  }
});

test('names in a deploy directory', () => {
  const { directories, archives, others } = table('deploy');
  for (const [name, machine, repository, tag] of directories) {
    assert.deepEqual(core.deployName(name, machine), { repository, tag }, name);
  }
  for (const [name, repository, tag] of archives) {
    assert.deepEqual(core.deployName(name, 'qemux86-64'), { repository, tag }, name);
  }
  for (const name of others.filter((name) => !name.endsWith('.tar'))) {
    assert.equal(core.deployName(name, 'qemux86-64'), null, name);
  }
});
