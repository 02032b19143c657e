/** How fast the checksum of csum is, by itself. */
import { randomFillSync } from 'node:crypto';
import { crcOfSector } from '../../src/formats/crc16.js';

const REQUEST_BYTES = 1 << 20;
const SECTOR_WORDS = 128;
const WARM_UP = 50;
const TIMES = 400;

/** Bytes a second, over requests of 1 MiB. */
export function measureCrc(): number {
  const words = randomFillSync(new Int32Array(REQUEST_BYTES / 4));
  let sum = 0;
  const run = (times: number) => {
    for (let i = 0; i < times; i++) {
      for (let at = 0; at < words.length; at += SECTOR_WORDS) sum ^= crcOfSector(words, at);
    }
  };
  run(WARM_UP);
  const began = performance.now();
  run(TIMES);
  const seconds = (performance.now() - began) / 1000;
  // So that it cannot be left out.
  if (sum < 0) throw new RangeError('a checksum has 16 bits');
  return (TIMES * REQUEST_BYTES) / seconds;
}
