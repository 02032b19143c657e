/** The devices of a volume as bytes: what tests plant in them between two starts. By the words of the document. */
import { MemoryDevice } from '../../../src/device/memory.js';
import { Prng } from '../../../src/device/prng.js';
import { encodeSuperblock } from '../../../src/formats/csum.js';
import type { StageLimits } from '../../../src/targets/csum/stage.js';
import { ID } from './areas.js';
import { bitwiseCrc } from './naive-volume.js';
import { attach, type CsumRig, formatted, type Layout, placeOf } from './rig.js';

export const LAYOUTS = ['interleaved', 'separate'] as const;

export interface ImageOptions {
  readonly layout?: Layout;
  readonly sectors?: number;
  readonly order?: 'be' | 'le';
  readonly seed?: number;
  readonly superblock?: boolean;
}

/** Of volumes that were made already: to format one takes longer than most of what tests do with it. */
const made = new Map<string, { content: Uint8Array; bytes: readonly Uint8Array[] }>();

export class Images {
  readonly layout: Layout;
  readonly order: 'be' | 'le';
  readonly sectors: number;
  /** What it was formatted with. */
  readonly content: Uint8Array;
  readonly bytes: Uint8Array[];

  constructor({
    layout = 'interleaved',
    sectors = 150,
    order = 'be',
    seed = 1,
    superblock = true,
  }: ImageOptions = {}) {
    this.layout = layout;
    this.order = order;
    this.sectors = sectors;
    const key = [layout, sectors, order, seed, superblock].join();
    if (!made.has(key)) {
      const content = new Prng(seed).bytes(512 * sectors);
      made.set(key, { content, bytes: formatted(layout, content, { order, superblock }) });
    }
    const { content, bytes } = made.get(key)!;
    this.content = content.slice();
    this.bytes = bytes.map((image) => image.slice());
  }

  copy(): Images {
    const { layout, sectors, order } = this;
    const copy = new Images({ layout, sectors, order });
    for (const [index, image] of this.bytes.entries()) copy.bytes[index]!.set(image);
    return copy;
  }

  /** A start over these very bytes; the descriptor's stages are as small as `limits`. */
  attach(limits?: StageLimits): Promise<CsumRig> {
    return attach(
      this.bytes.map((image) => new MemoryDevice(image)),
      limits,
    );
  }

  /** The bytes of a data sector. */
  data(rel: number): Uint8Array {
    const { dataAt } = placeOf(this.layout, rel);
    return this.bytes[0]!.subarray(dataAt, dataAt + 512);
  }

  flipData(rel: number): void {
    this.data(rel)[100]! ^= 16;
  }

  /** The bytes of a brother: 0 for M1, 1 for M2. */
  table(group: number, brother: 0 | 1): Uint8Array {
    const { m1At } = placeOf(this.layout, group * 62);
    return this.bytes.at(-1)!.subarray(m1At + 512 * brother, m1At + 512 * (brother + 1));
  }

  /** By the counters alone. */
  newer(group: number): 0 | 1 {
    return ((this.table(group, 0)[0]! - this.table(group, 1)[0]!) & 255) === 1 ? 0 : 1;
  }

  older(group: number): 0 | 1 {
    return this.newer(group) === 0 ? 1 : 0;
  }

  crc(rel: number, brother: 0 | 1): number {
    const at = 8 + 8 * (rel % 62);
    return this.word(this.table(Math.floor(rel / 62), brother), at);
  }

  /** Makes a brother say that a sector has this CRC; its own CRC is right then. */
  setCrc(rel: number, brother: 0 | 1, crc: number): void {
    const table = this.table(Math.floor(rel / 62), brother);
    this.setWord(table, 8 + 8 * (rel % 62), crc);
    this.seal(table);
  }

  seal(table: Uint8Array): void {
    this.setWord(table, 2, bitwiseCrc(table.subarray(8, 512)));
  }

  isSound(group: number, brother: 0 | 1): boolean {
    const table = this.table(group, brother);
    return this.word(table, 2) === bitwiseCrc(table.subarray(8, 512));
  }

  /** An update of these sectors, all of one group, whose table has landed and whose data has not. */
  halfUpdate(rels: readonly number[], crc = 0x1234): void {
    const group = Math.floor(rels[0]! / 62);
    const [from, to] = [this.newer(group), this.older(group)];
    const counter = this.table(group, from)[0]!;
    this.table(group, to).set(this.table(group, from));
    this.table(group, to)[0] = counter + 1;
    for (const [index, rel] of rels.entries()) this.setCrc(rel, to, (crc + index) & 0xffff);
  }

  /** Both counters of a group, the newer one being M2's. */
  setCounters(group: number, older: number): void {
    this.table(group, 0)[0] = older;
    this.table(group, 1)[0] = older + 1;
  }

  /** As the superblock is: `in-use` for a volume that was not closed. */
  setState(state: 'formatting' | 'in-use' | 'clean'): void {
    const fields = {
      order: this.order,
      placement: this.layout === 'interleaved' ? ('interleaved' as const) : ('separate-r' as const),
      state,
      sectors: this.sectors,
      groupsFormatted: 0,
      id: ID,
    };
    this.bytes[0]!.set(encodeSuperblock('data', fields));
  }

  get state(): string {
    return ['?', 'formatting', 'in-use', 'clean'][this.bytes[0]![14]!]!;
  }

  private word(bytes: Uint8Array, at: number): number {
    const [high, low] = this.order === 'be' ? [bytes[at]!, bytes[at + 1]!] : [bytes[at + 1]!, bytes[at]!];
    return high * 256 + low;
  }

  private setWord(bytes: Uint8Array, at: number, value: number): void {
    const pair = [value >>> 8, value & 255];
    bytes.set(this.order === 'be' ? pair : pair.reverse(), at);
  }
}
