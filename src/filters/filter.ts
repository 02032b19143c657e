/**
 * What a block filter is: it stands before a target, from its attachment to its detachment, while requests come and go.
 *
 * Every request for the device meets the filter first, which passes it on to the target (`below`), delays it or ends it.
 * As with a target, a FilterType makes a descriptor of plain values and SharedArrayBuffers on the main thread, and each
 * thread builds its own view of it with `open`. A descriptor may be replaced while the filter is attached: threads then open
 * a new view of the same shared state.
 *
 * A folder under filters/ holds one filter, or one file a small one.
 */
import type { BlockDevice } from '../device/block-device.js';
import type { Backing, ControlFile, OpenContext } from '../targets/target.js';

/** What a thread gives a filter that it opens. */
export interface FilterContext extends OpenContext {
  /** The device that requests are passed on to: the target. */
  readonly below: BlockDevice;
  /** Puts a line in the events of `id`, something other than the device that has them: a snapshot. */
  raiseAt(id: number, event: string): void;
}

/** What the main thread gives a filter type that is attached. */
export interface AttachContext {
  /** Bytes of the device. */
  readonly size: number;
  /** As CreateContext.openBacking; claimed until the filter is detached. */
  openBacking(device: string, access: 'read' | 'write'): Promise<Backing>;
  device(backing: Backing): BlockDevice;
}

/** One thread's view of a filter. Its `size` is that of what is below. */
export interface Filter extends BlockDevice {
  /** What follows the name in `cat filter`: arguments that attach it again. */
  args(): string;
  /** Main thread, when no request passes it any more. Throws what could not be made durable. */
  close?(): void;
}

export interface FilterType<Descriptor = unknown, F extends Filter = Filter> {
  readonly name: string;
  /** The arguments, for messages and --help. */
  readonly usage: string;
  /** Main thread. Throws DmError and leaves nothing behind but claims, which the caller gives back. */
  attach(args: readonly string[], context: AttachContext): Promise<Descriptor>;
  /** Every thread. Must not do I/O: lanes open a filter between two requests. */
  open(descriptor: Descriptor, context: FilterContext): F;
  /**
   * For a filter whose state survives a clean unmount: its bytes, when nothing changes it any more, and a descriptor made of
   * them. `identity` says what state the device's backings are in. `restore` throws EINVAL where the bytes are not of a device of
   * that identity and size, or damaged.
   */
  save?(descriptor: Descriptor, identity: string): Uint8Array;
  restore?(bytes: Uint8Array, device: { readonly identity: string; readonly size: number }): Descriptor;
  /** Another descriptor for a device that has grown to `size` bytes; left out: the one there is will do. */
  resized?(size: number): Descriptor;
  /** What the filter adds to the control files of its device. */
  readonly files: readonly ControlFile<F>[];
}
