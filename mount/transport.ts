/**
 * The ways a mount can reach the kernel, and what each of them cannot carry. This is the one place that knows: MNT/.dmfuse and
 * `dmfuse status` say it from here.
 *
 *   kernel       root: mount(2), lanes read /dev/fuse themselves
 *   fusermount3  anybody else: the same, on a descriptor that fusermount3 has mounted
 *   fuse-native  the npm package of that name (libfuse 2): the main thread serves everything
 */
import type { DeviceDescription, ToLane } from './lanes/protocol.js';
import type { Output } from './outputs.js';
import type { BackingIds } from './tree/passthrough.js';
import type { Tree } from './tree/tree.js';

/** What `dmfuse mount --transport` takes: `kernel` stands for fusermount3 too, whichever fits the user. */
export const TRANSPORT_CHOICES = ['kernel', 'fuse-native'] as const;
export type TransportChoice = (typeof TRANSPORT_CHOICES)[number];
export type TransportName = TransportChoice | 'fusermount3';

/** Bytes of the largest request of each. */
const REQUEST_BYTES_MAX: Readonly<Record<TransportName, number>> = {
  kernel: 1 << 20,
  fusermount3: 1 << 20,
  'fuse-native': 128 << 10,
};
const REQUEST_BYTES_LARGE = 1 << 20;

/** What may be lacking, as .dmfuse names it, and in words. */
const LACKS = {
  trim: 'no TRIM (write to discard)',
  seek_hole: 'no SEEK_HOLE',
  poll: 'no poll',
  passthrough: 'no passthrough',
  large_requests: 'requests of at most 128 KiB',
} as const;
export type Lack = keyof typeof LACKS;

export interface TransportFacts {
  readonly name: TransportName;
  readonly lacks: readonly Lack[];
  readonly requestBytesMax: number;
}

/** `passthrough`: whether the kernel offers it to this connection. */
export function factsOf(name: TransportName, { passthrough }: { passthrough: boolean }): TransportFacts {
  const requestBytesMax = REQUEST_BYTES_MAX[name];
  const isLibfuse2 = name === 'fuse-native';
  const isLacking: Readonly<Record<Lack, boolean>> = {
    trim: isLibfuse2,
    seek_hole: isLibfuse2,
    poll: isLibfuse2,
    passthrough: !passthrough,
    large_requests: requestBytesMax < REQUEST_BYTES_LARGE,
  };
  const lacks = (Object.keys(LACKS) as Lack[]).filter((lack) => isLacking[lack]);
  return { name, lacks, requestBytesMax };
}

/** The lines of MNT/.dmfuse that say it. */
export function factsText({ name, lacks, requestBytesMax }: TransportFacts): string {
  return `transport ${name}\nlacks ${lacks.join(' ')}`
    .trimEnd()
    .concat(`\nrequest_bytes_max ${requestBytesMax}\n`);
}

/** Reads what factsText has written; undefined where it is not there. */
export function parseFacts(text: string): TransportFacts | undefined {
  const word = (key: string) => new RegExp(`^${key} ?(.*)$`, 'm').exec(text)?.[1];
  const name = word('transport');
  if (name === undefined) return undefined;
  return {
    name: name as TransportName,
    lacks: (word('lacks') ?? '').split(' ').filter(Boolean) as Lack[],
    requestBytesMax: Number(word('request_bytes_max')),
  };
}

/** One line for people; undefined where nothing is lacking. */
export function lacksLine({ name, lacks }: TransportFacts): string | undefined {
  if (lacks.length === 0) return undefined;
  // A word that is not known is a newer daemon's: better said as it is than not at all.
  return `transport: ${name}, carries ${lacks.map((lack) => LACKS[lack] ?? `no ${lack}`).join(', ')}`;
}

/** What a transport serves, and whom it tells. */
export interface Served {
  readonly tree: Tree;
  /** The main thread's own view of what has a `device` file. */
  readonly outputOf: (device: DeviceDescription) => Output;
  /** Resolves when requests for what has the id may be served; undefined: now. */
  readonly whenFree: (id: number) => Promise<void> | undefined;
  /** A line for the events of what has the id. */
  readonly onEvent: (id: number, line: string) => void;
  readonly log: (line: string) => void;
  /** The mount is gone. */
  readonly onEnd: () => void;
  /** Something of the transport died of an error of ours. */
  readonly onFailure: (who: string, error: Error) => void;
}

/** A transport at work. */
export interface Service {
  /** Tells whoever serves devices; when it returns, nobody begins another request before he has heard. */
  announce(message: ToLane): void;
  /** Resolves when every request for one of `nodes` has been served that was under way at the call. */
  settle(nodes: ReadonlySet<number>): Promise<void>;
  /** The mount answers: whatever else is needed may start. */
  startSpares(): void;
  /** Requests for a node that are being served now. */
  inFlight(node: number): number;
  /** The kernel asks anew for the attributes of a node when this resolves, or in a second. */
  attributesChanged(node: number): Promise<void>;
  /** The same for a name in the root, some time. */
  nameGone(name: string): void;
}

export interface Transport {
  readonly facts: TransportFacts;
  /** Threads that count I/O: rows of every device's statistics. */
  readonly statRows: number;
  readonly backingIds: BackingIds | undefined;
  /** Throws where it cannot mount. */
  start(served: Served): Promise<Service>;
}

export interface TransportOptions {
  /** An absolute path to a directory. */
  readonly mountPoint: string;
  readonly lanes: number;
  /** What mount(8) and df show as the mount's source. */
  readonly source: string;
  readonly allowOther: boolean;
  readonly debug: boolean;
}
