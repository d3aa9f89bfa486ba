// Target configuration: every profile, merging, and the options.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { inPackage } from './package.mjs';

const { targetFiles } = await import(inPackage('node.js'));

const paths = (result) => result.files.map(({ path }) => path);

test('each profile has its files', () => {
  for (const [profile, expected] of [
    ['docker', ['/etc/docker/daemon.json']],
    ['podman', ['/etc/containers/registries.conf.d/50-container-registry.conf']],
    ['cri-o', ['/etc/containers/registries.conf.d/50-container-registry.conf']],
    ['containerd', ['/etc/containerd/certs.d/10.0.2.2:5000/hosts.toml', '/etc/containerd/config.toml']],
    ['vdkr', ['/etc/vdkr/registry.conf']],
  ]) {
    const result = targetFiles(profile, 'localhost:5000/yocto');
    assert.equal(result.ok, true, JSON.stringify(result));
    assert.deepEqual(paths(result), expected, profile);
    assert.match(result.notes[0], /^localhost:5000 is 10\.0\.2\.2:5000/);
    for (const { content } of result.files) {
      assert.doesNotMatch(content, /localhost/);
    }
  }
});

test('options say what differs', () => {
  const kept = targetFiles('vdkr', 'localhost:5000/yocto', { gateway: null });
  assert.match(kept.files[0].content, /VDKR_DEFAULT_REGISTRY="localhost:5000\/yocto"/);
  const body = btoa('0'.repeat(99));
  const ca = `-----BEGIN CERTIFICATE-----\n${body}\n-----END CERTIFICATE-----\n`;
  assert.deepEqual(paths(targetFiles('docker', 'registry.example', { ca })), [
    '/etc/docker/certs.d/registry.example/ca.crt',
    '/usr/local/share/ca-certificates/container-registry-ca.crt',
  ]);
  const present = { '/etc/docker/daemon.json': '{"log-level":"warn"}' };
  const merged = targetFiles('docker', 'lab:5000', { insecure: true, present });
  assert.equal(merged.files[0].content, '{"log-level":"warn","insecure-registries":["lab:5000"]}');
  assert.equal(targetFiles('docker', 'lab:5000', { present: { '/etc/docker/daemon.json': '[' }, insecure: true }).ok, false);
});
