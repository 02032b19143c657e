/**
 * What is known to be bad: sectors that match no table, and groups of which a table is damaged. Each is told in an event
 * when it is found, and listed until it is healed.
 */
import { RwLock } from '../../shared/rwlock.js';

const COUNT = RwLock.WORDS;
const LISTED = COUNT + 1;

/** More are counted, not listed. */
const CAPACITY = 4096;

export class BadList {
  /** 32-bit words in shared memory, all 0 at first. */
  static readonly WORDS = RwLock.WORDS + 2;
  static readonly DOUBLES = CAPACITY;

  private readonly lock: RwLock;

  /** This thread's view. A sector stands in `places` as its number, a group as -1 - its number. */
  constructor(
    private readonly words: Int32Array,
    private readonly places: Float64Array,
    private readonly raise: (event: string) => void,
  ) {
    this.lock = new RwLock(words.subarray(0, RwLock.WORDS));
  }

  /** How often something bad was found that was not listed at the time. */
  get count(): number {
    return Atomics.load(this.words, COUNT);
  }

  /** `event` is raised unless it is listed already. */
  addSector(sector: number, event: string): void {
    this.add(sector, event);
  }

  addGroup(group: number, event: string): void {
    this.add(-1 - group, event);
  }

  /** Sectors [sector, sector + count) were written. */
  healSectors(sector: number, count: number): void {
    this.remove((place) => place >= sector && place < sector + count);
  }

  healGroup(group: number): void {
    this.remove((place) => place === -1 - group);
  }

  list(): { sectors: number[]; groups: number[] } {
    this.lock.lockShared();
    try {
      const places = [...this.places.subarray(0, this.words[LISTED]!)];
      const ascending = (numbers: number[]) => numbers.sort((a, b) => a - b);
      return {
        sectors: ascending(places.filter((place) => place >= 0)),
        groups: ascending(places.filter((place) => place < 0).map((place) => -1 - place)),
      };
    } finally {
      this.lock.unlockShared();
    }
  }

  private add(place: number, event: string): void {
    const isNew = this.lock.exclusively(() => {
      const listed = this.words[LISTED]!;
      if (this.places.subarray(0, listed).includes(place)) return false;
      Atomics.add(this.words, COUNT, 1);
      if (listed < CAPACITY) {
        this.places[listed] = place;
        Atomics.store(this.words, LISTED, listed + 1);
      }
      return true;
    });
    if (isNew) this.raise(event);
  }

  private remove(isHealed: (place: number) => boolean): void {
    if (Atomics.load(this.words, LISTED) === 0) return;
    this.lock.exclusively(() => {
      const kept = this.places.slice(0, this.words[LISTED]).filter((place) => !isHealed(place));
      this.places.set(kept);
      Atomics.store(this.words, LISTED, kept.length);
    });
  }
}
