import type { BlockDevice } from './block-device.js';

/** A block device in memory: for tests, and as the medium under the simulated disk. */
export class MemoryDevice implements BlockDevice {
  readonly size: number;
  /** The content; `size` bytes. */
  readonly bytes: Uint8Array;

  constructor(content: number | Uint8Array) {
    this.bytes = typeof content === 'number' ? new Uint8Array(content) : content;
    this.size = this.bytes.length;
  }

  read(offset: number, into: Uint8Array): void {
    this.check(offset, into.length);
    into.set(this.bytes.subarray(offset, offset + into.length));
  }

  write(offset: number, from: Uint8Array): void {
    this.check(offset, from.length);
    this.bytes.set(from, offset);
  }

  flush(): void {}

  discard(offset: number, length: number): void {
    this.writeZeroes(offset, length);
  }

  writeZeroes(offset: number, length: number, _options?: { unmap?: boolean }): void {
    this.check(offset, length);
    this.bytes.fill(0, offset, offset + length);
  }

  private check(offset: number, length: number): void {
    if (offset < 0 || length < 0 || offset + length > this.size) {
      throw new RangeError(`memory device: ${length} bytes at ${offset} are outside its ${this.size} bytes`);
    }
  }
}
