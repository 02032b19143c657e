/** One image of what a stack shows. Zeros become holes. */
import { type BlockDevice, extentOf, zeroOut } from '../../device/block-device.js';
import type { ProgressOptions } from '../../progress.js';
import { isZero } from './bitmap-device.js';

/** Bytes of a request, and between two calls of `onProgress` at most. */
const CHUNK_BYTES = 1 << 20;
/** Bytes: the least that a file system makes a hole of. */
const FILE_BLOCK = 4096;
/** Bytes: zeros shorter than this are written like data where they would take a request of their own. */
const DEVICE_BLOCK = 65_536;

export interface FlattenOptions extends ProgressOptions {
  /** `out` is zeros already, as a new file is. */
  readonly isOutZero: boolean;
}

export interface Flattened {
  /** Bytes of the image. */
  readonly bytes: number;
  /** Bytes of it that were written; the others are zeros. */
  readonly writtenBytes: number;
}

/** Copies all of `source` to the beginning of `out`, and flushes it. Throws what the devices throw. */
export async function flatten(
  source: BlockDevice,
  out: BlockDevice,
  { isOutZero, onProgress }: FlattenOptions,
): Promise<Flattened> {
  const { size } = source;
  const buffer = new Uint8Array(Math.min(CHUNK_BYTES, size));
  const image = new Image(out, isOutZero);
  for (let at = 0; at < size; ) {
    const extent = extentOf(source, at);
    // What is read ends where a chunk ends, also where it has holes: whoever asks for each small extent takes for ever.
    const chunkEnd = (Math.floor(at / CHUNK_BYTES) + 1) * CHUNK_BYTES;
    const end = Math.min(size, extent.data ? chunkEnd : extent.end);
    if (extent.data) {
      const bytes = buffer.subarray(0, end - at);
      source.read(at, bytes);
      image.put(at, bytes);
    }
    at = end;
    await onProgress?.({ bytes: at, bytesTotal: size });
  }
  image.zeroUpTo(size);
  out.flush();
  return { bytes: size, writtenBytes: image.writtenBytes };
}

/** What has been written of an image, from its beginning on. */
class Image {
  writtenBytes = 0;
  private readonly block: number;
  /** Up to here `out` is as it should be. */
  private done = 0;

  constructor(
    private readonly out: BlockDevice,
    private readonly isOutZero: boolean,
  ) {
    this.block = isOutZero ? FILE_BLOCK : DEVICE_BLOCK;
  }

  /** Writes `bytes`, which are for byte `at`, but for blocks of zeros. */
  put(at: number, bytes: Uint8Array): void {
    const end = at + bytes.length;
    let start = at;
    for (let here = at; here < end; ) {
      const stop = Math.min(end, (Math.floor(here / this.block) + 1) * this.block);
      if (isZero(bytes.subarray(here - at, stop - at))) {
        this.write(start, bytes.subarray(start - at, here - at));
        start = stop;
      }
      here = stop;
    }
    this.write(start, bytes.subarray(start - at));
  }

  zeroUpTo(end: number): void {
    if (!this.isOutZero && end > this.done) zeroOut(this.out, this.done, end - this.done);
    this.done = end;
  }

  private write(at: number, bytes: Uint8Array): void {
    if (bytes.length === 0) return;
    this.zeroUpTo(at);
    this.out.write(at, bytes);
    this.done = at + bytes.length;
    this.writtenBytes += bytes.length;
  }
}
