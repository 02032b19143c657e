/** A device in shared memory that takes its time in the middle of a request, so that other threads come in between. */
import type { BlockDevice } from '../../../src/device/block-device.js';
import { MemoryDevice } from '../../../src/device/memory.js';
import { Prng } from '../../../src/device/prng.js';

const idle = new Int32Array(new SharedArrayBuffer(4));

export class SlowMemory implements BlockDevice {
  readonly size: number;
  private readonly memory: MemoryDevice;
  private readonly rng: Prng;

  /** One request of 1 / `rarely` dawdles. */
  constructor(
    shared: SharedArrayBuffer,
    seed: number,
    private readonly rarely: number,
  ) {
    this.memory = new MemoryDevice(new Uint8Array(shared));
    this.size = this.memory.size;
    this.rng = new Prng(seed);
  }

  read(offset: number, into: Uint8Array): void {
    this.inTwo(into.length, (from, to) => this.memory.read(offset + from, into.subarray(from, to)));
  }

  write(offset: number, data: Uint8Array): void {
    this.inTwo(data.length, (from, to) => this.memory.write(offset + from, data.subarray(from, to)));
  }

  flush(): void {}

  discard(offset: number, length: number): void {
    this.writeZeroes(offset, length);
  }

  writeZeroes(offset: number, length: number): void {
    this.inTwo(length, (from, to) => this.memory.writeZeroes(offset + from, to - from));
  }

  private inTwo(length: number, part: (from: number, to: number) => void): void {
    const middle = this.rng.below(length + 1);
    this.dawdle();
    part(0, middle);
    this.dawdle();
    part(middle, length);
    this.dawdle();
  }

  private dawdle(): void {
    if (this.rng.below(this.rarely) === 0) Atomics.wait(idle, 0, 0, 0.2);
  }
}
