/**
 * What a target is.
 *
 * A TargetType makes a target on the main thread: `create` checks the table's arguments, opens the backings and
 * returns a descriptor of plain values and SharedArrayBuffers. The descriptor crosses to every lane, and each thread
 * builds its own view of the target with `open`. All state that changes lives in the descriptor's shared buffers.
 *
 * A folder under targets/ holds one target: index.ts (its design and its TargetType), table arguments, requests,
 * control files.
 */
import type { BlockDevice } from '../device/block-device.js';
import type { FileDescription } from '../device/file.js';

/** What a table's `<dev>` became. Plain data: it crosses to the lanes inside a descriptor. */
export type Backing = FileBacking | TargetBacking;

export interface FileBacking extends FileDescription {
  readonly kind: 'file';
}

/** `@NAME`: the output device of another target of the same mount. */
export interface TargetBacking {
  readonly kind: 'target';
  readonly id: number;
  readonly path: string;
  /** Bytes. */
  readonly size: number;
}

/** What a thread gives a target that it opens. */
export interface OpenContext {
  /** The device behind a backing, as this thread sees it. */
  device(backing: Backing): BlockDevice;
  /** Puts a line in the target's `events`: `name key=value…`. */
  raise(event: string): void;
}

/** What the main thread gives a target type that makes a target. */
export interface CreateContext extends OpenContext {
  /** LENGTH of the table line, sectors. */
  readonly length: number | undefined;
  /**
   * Opens a `<dev>` and claims it for this target until the target is removed. Throws ENOENT when there is none,
   * EBUSY when another target (or anybody else, for a block device) has it for writing, EINVAL for one that would
   * wait for this very mount.
   */
  openBacking(device: string, access: 'read' | 'write'): Promise<Backing>;
}

export interface GrowContext extends OpenContext {
  /** Bytes that a backing has now. */
  sizeOf(backing: Backing): number;
}

/** One thread's view of a live target. */
export interface Target extends BlockDevice {
  /** The arguments of the table line, such that `create` accepts them unchanged. */
  tableArgs(): string;
  /** What follows `0 LENGTH TYPE` in the status line. */
  statusArgs(): string;
  /** Bytes; the unit in which the target keeps track of trims. */
  readonly trimGranularity: number;
  /**
   * The file that is this device byte for byte, from now until the target is removed: the kernel may do the I/O of
   * later opens itself. Left out or undefined: every request must come through the target.
   */
  passthrough?(): FileBacking | undefined;
  /** True when no flush will work again: to keep the target would save nothing, and it can be removed all the same. */
  cannotFlush?(): boolean;
  /**
   * One thread, once it is live: until the function that it returns is called, makes durable about once a second what a kill
   * would lose.
   */
  commitRegularly?(): () => void;
  /** One thread, another one: the same for long work, in steps between which nothing is held. */
  workInBackground?(): () => void;
  /**
   * Main thread: the target goes in good order; it is flushed, and no request will come. For what makes the next start
   * easier: nobody hears of an error.
   */
  close?(): void;
}

/** The content of a binary file: bytes that are there, or that are worked out as they are read. */
export interface ByteSource {
  readonly length: number;
  /** A copy of bytes [start, end); fewer only at the end, or where they take long, but one at least. */
  slice(start: number, end: number): Uint8Array;
}

/**
 * A control file of MNT/NAME. `read` gives the text, `write` takes it (without the last newline); `bytes` is the content of a
 * binary one, read at any offset as it is then.
 */
export interface ControlFile<T = Target> {
  readonly name: string;
  read?(target: T): string;
  bytes?(target: T): ByteSource;
  write?(target: T, text: string): void | Promise<void>;
}

export interface TargetType<Descriptor = unknown, T extends Target = Target> {
  readonly name: string;
  /** The arguments, for messages and --help. */
  readonly usage: string;
  /** Main thread. Throws DmError and leaves nothing behind but claims, which the caller gives back. */
  create(args: readonly string[], context: CreateContext): Promise<Descriptor>;
  /** Every thread. Must not do I/O: lanes open a target between two requests. */
  open(descriptor: Descriptor, context: OpenContext): T;
  /**
   * Main thread, while no request is under way and all is flushed: a descriptor for the same device, longer, with the same
   * backings; undefined where they have not grown, or the device does not go to their end. Left out: its size never changes.
   * Throws DmError where it cannot.
   */
  grow?(descriptor: Descriptor, context: GrowContext): Descriptor | undefined;
  /** Messages (`dmsetup message`) that mean a text for one of its control files. Any other begins with the name of one. */
  readonly messages?: ReadonlyMap<string, readonly [file: string, text: string]>;
  /** What the target adds to the common control files. */
  readonly files: readonly ControlFile<T>[];
}
