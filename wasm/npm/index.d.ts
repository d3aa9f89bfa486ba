/**
 * Loads the module. In a browser await it once before any other call; without an argument it fetches
 * `vdkr_core_bg.wasm` beside the script. Under node the module is loaded by the import itself.
 */
export default function init(
  source?: string | URL | Request | Response | BufferSource | WebAssembly.Module | Promise<Response>,
): Promise<void>;

/** What is wrong with an argument. */
export interface Problem<Field extends string = string, Rule extends string = string> {
  /** The argument. */
  field: Field;
  /** Index of the first offending character in the argument; its length where something is missing. */
  offset: number;
  /** The rule broken. */
  rule: Rule;
  /** The rule as a sentence. */
  message: string;
}

export interface Failure<Field extends string = string, Rule extends string = string> {
  ok: false;
  error: Problem<Field, Rule>;
}

/** The rules of references and registries. */
export type ReferenceRule =
  | 'empty'
  | 'scheme'
  | 'image-id'
  | 'host-empty'
  | 'host-character'
  | 'host-part'
  | 'host-too-long'
  | 'host-ambiguous'
  | 'ipv6'
  | 'port'
  | 'repository-empty'
  | 'repository-upper-case'
  | 'repository-character'
  | 'repository-separator'
  | 'repository-too-long'
  | 'tag-empty'
  | 'tag-start'
  | 'tag-character'
  | 'tag-too-long'
  | 'digest-format'
  | 'digest-algorithm'
  | 'digest-character'
  | 'digest-length';

/** A reference in its parts. */
export interface Reference {
  ok: true;
  /** Host with its port: `docker.io`, `localhost:5000`, `[::1]:5000`. */
  host: string;
  /** Host without port and brackets. */
  hostName: string;
  port: number | null;
  /** Whether the text named its host, or `docker.io` is implied. */
  explicitHost: boolean;
  /** Whether the host is the machine itself, which is the gateway inside a VM. */
  loopback: boolean;
  /** All components: `library/alpine`. */
  repository: string;
  tag: string | null;
  digest: string | null;
  /** The shortest text that means the same. */
  familiar: string;
  /** The full text, with its host. */
  canonical: string;
}

/** Reads `[host[:port]/]repository[:tag][@digest]`. */
export function parseReference(text: string): Reference | Failure<'name', ReferenceRule>;

/** Whether the text is an image id (12 to 64 hexadecimal digits, or `sha256:` and 64), which is never turned into a name. */
export function isImageId(text: string): boolean;

/** One place to pull from. */
export interface Candidate {
  /** Why: the name says so, it is under the configured registry, or it has no host. */
  source: 'as-written' | 'registry' | 'docker-hub';
  /** Full name with a tag or a digest. */
  reference: string;
}

/**
 * Where `pull` and `run` look for a name, in order. The next candidate is tried only when the registry
 * answers that it does not know the image.
 *
 * @param registry `host[:port][/namespace]`, with or without a scheme
 */
export function pullCandidates(
  name: string,
  registry?: string | null,
): { ok: true; candidates: Candidate[] } | Failure<'name' | 'registry', ReferenceRule>;

/** What a name means among the stored ones. */
export type LocalMatch =
  | { ok: true; kind: 'name'; names: [string] }
  | { ok: true; kind: 'ambiguous'; names: string[] }
  | { ok: true; kind: 'id' | 'none'; names: [] };

/** Which of the stored names a name means. */
export function resolveLocal(
  name: string,
  stored: readonly string[],
  registry?: string | null,
): LocalMatch | Failure<'name' | 'registry', ReferenceRule>;

/** A URL, or `host[:port]/…`, with a loopback host replaced by the VM's gateway (10.0.2.2). */
export function translateLoopback(url: string, gateway?: string | null): string;

/** A way to make tags. */
export type Strategy = 'timestamp' | 'sha' | 'git' | 'branch' | 'semver' | 'version' | 'latest' | 'arch';

/** What is known about a push. */
export interface TagFacts {
  /** `20260112-143022` */
  timestamp?: string | null;
  /** Short commit. */
  sha?: string | null;
  branch?: string | null;
  version?: string | null;
  /** As the tags should spell it: `aarch64`. */
  arch?: string | null;
}

/**
 * The tags of a push, in the order of the strategies.
 *
 * @param strategies a list, or a text of words separated by blanks or commas
 */
export function tags(
  strategies: string | readonly Strategy[],
  facts?: TagFacts,
):
  | {
      ok: true;
      /** Legal tags, each once, at least one. */
      tags: string[];
      /** One sentence for each strategy that gave no tag. */
      warnings: string[];
    }
  | Failure<'strategies', 'strategy'>;

/**
 * The repository that a layout directory (`<name>-latest-oci`) or an archive of one becomes.
 *
 * @param machine the name of the directory it stands in
 */
export function deployName(
  name: string,
  machine?: string | null,
): { repository: string; tag: string | null } | null;
