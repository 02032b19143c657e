/**
 * The files of a target's directory, as one table: the common ones here, then what the target's type declares, then
 * those of filters. This is the one place where a declaration becomes a file.
 */
import { fstatSync, ftruncateSync } from 'node:fs';
import { hasData } from '../../src/device/file.js';
import { DmError } from '../../src/errors.js';
import { blksnap } from '../../src/filters/blksnap/tracker.js';
import type { Filter } from '../../src/filters/filter.js';
import { filterTypes } from '../../src/filters/index.js';
import { parseSectorRanges, quoteWord } from '../../src/table.js';
import type { ControlFile } from '../../src/targets/target.js';
import { SECTOR_BYTES } from '../../src/units.js';
import { latencyText, sumLatencies, sumStats } from '../lanes/stats.js';
import type { Registry } from '../registry.js';
import { type LiveTarget, type Slot, statusLine, tableLine } from '../slot.js';
import type { MountedSnapshots } from '../snapshots.js';
import { eventsFile, type OutputFile, type TextFile, type TreeFile, textFile } from './folder.js';
import { deviceNode } from './nodes.js';
import type { Passthrough } from './passthrough.js';

export interface FilesContext {
  readonly registry: Registry;
  readonly passthrough: Passthrough;
  readonly snapshots: MountedSnapshots;
  /** Requests for a node that are being served now. */
  readonly inFlight: (node: number) => number;
}

/** All files of a slot, those that wait for a target or a filter included. The first is the device. */
export function filesOf(slot: Slot, context: FilesContext): TreeFile[] {
  const { registry, passthrough, snapshots } = context;
  const isLive = slot.live !== undefined;
  const { ofTarget, ofFilters } = declaredFiles(slot, registry);
  const common: TreeFile[] = [
    {
      name: 'device',
      permissions: 0o600,
      isShown: isLive,
      device: new TargetOutput(slot, registry, passthrough),
    },
    textFile('table', {
      read: () => (slot.live ? `${tableLine(slot.live)}\n` : ''),
      write: (text) => registry.load(slot, text),
    }),
    textFile('status', { read: () => `${statusLine(slot)}\n` }),
    textFile('size', { read: () => `${live(slot).target.size / SECTOR_BYTES}\n` }, isLive),
    textFile('stats', { read: () => statsText(slot, context) }, isLive),
    eventsFile(slot.events),
    textFile(
      'discard',
      {
        write: (text) => {
          if (registry.claimOn(slot)) throw new DmError('EBUSY', `${slot.name}: another target stands on it`);
          registry.refuseHeld(slot);
          discard(live(slot), text);
        },
      },
      isLive,
    ),
    textFile(
      'filter',
      { read: () => `${filterLine(live(slot))}\n`, write: (text) => registry.setFilter(slot, text) },
      isLive,
    ),
    textFile('info', { read: () => infoText(slot) }),
    textFile('deps', { read: () => depsText(registry.claimsOf(slot)) }, isLive),
    textFile(
      'suspended',
      {
        read: () => `${Number(slot.suspended)}\n`,
        write: (text) => registry[suspendOrResume(text)](slot),
      },
      isLive,
    ),
    textFile('removal', {
      read: () => `${slot.removal}\n`,
      write: (text) => registry.setRemoval(slot, text.trim()),
    }),
    textFile('message', { write: (text) => obey([...ofTarget, ...ofFilters], live(slot), text) }, isLive),
    textFile('latency', { read: () => latencyText(sumLatencies(live(slot).stats)) }, isLive),
  ];
  const isTracked = slot.live?.filter?.type.name === blksnap.name;
  const snapshot = textFile(
    'snapshot',
    { read: () => snapshots.textFor(slot.id), write: (text) => snapshots.join(text.trim(), slot.name) },
    isTracked,
  );
  return [...common, snapshot, ...ofFilters, ...ofTarget];
}

/** What the type of the target declares, and all types of filters, attached or not. */
function declaredFiles(slot: Slot, registry: Registry): { ofTarget: TreeFile[]; ofFilters: TreeFile[] } {
  // What is told to a target may be I/O of its own.
  const mayChange = () => registry.refuseHeld(slot);
  const target = { of: () => live(slot).target, mayChange };
  return {
    ofTarget: (slot.live?.type.files ?? []).map((file) => controlFile(file, target)),
    ofFilters: filterTypes().flatMap((type) => {
      const filter = { of: () => attached(slot, type.name), mayChange };
      const isShown = slot.live?.filter?.type === type;
      return type.files.map((file) => controlFile(file, filter, isShown));
    }),
  };
}

/** What a declared file works on; both throw the reason why not. */
interface Subject<T> {
  of(): T;
  mayChange(): void;
}

function controlFile<T>({ name, read, bytes, write }: ControlFile<T>, subject: Subject<T>, isShown = true) {
  const text: TextFile = {
    ...(read ? { read: () => read(subject.of()) } : {}),
    ...(bytes ? { bytes: () => bytes(subject.of()) } : {}),
    ...(write
      ? {
          write: (line: string) => {
            subject.mayChange();
            return write(subject.of(), line);
          },
        }
      : {}),
  };
  return textFile(name, text, isShown);
}

function suspendOrResume(text: string): 'suspend' | 'resume' {
  if (text.trim() === '1') return 'suspend';
  if (text.trim() === '0') return 'resume';
  throw new DmError('EINVAL', `suspended: expected 1 or 0, found \`${text}\``);
}

/** `dmsetup message`: what the type calls a message, or the name of one of its files and what is written to it. */
async function obey(files: readonly TreeFile[], { type }: LiveTarget, text: string): Promise<void> {
  const [, word = '', rest = ''] = /^\s*(\S+)\s*(.*)$/s.exec(text) ?? [];
  const meant = type.messages?.get(word);
  const [name, value] = meant ?? [word, rest];
  const file = files.find(
    (candidate) => candidate.isShown && candidate.name === name && candidate.text?.write,
  );
  if (!file || (meant && rest !== '')) {
    const known = files
      .filter(({ isShown, text: content }) => isShown && content?.write)
      .map((each) => each.name);
    const words = [...(type.messages?.keys() ?? []), ...known];
    throw new DmError(
      'EINVAL',
      `message \`${text}\`: ${words.length > 0 ? `expected one of ${words.join(', ')}` : 'the target has no messages'}`,
    );
  }
  await file.text!.write!(value);
}

function depsText(claims: ReturnType<Registry['claimsOf']>): string {
  return claims.map(({ access, backing }) => `${access} ${quoteWord(backing.path)}\n`).join('');
}

function infoText(slot: Slot): string {
  const { name, live: target, failure, opens, removal, suspended, events } = slot;
  const state = suspended ? 'suspended' : target ? 'active' : failure === undefined ? 'no_table' : 'failed';
  const lines = {
    name,
    state,
    type: target?.type.name ?? '-',
    length_sectors: (target?.target.size ?? 0) / SECTOR_BYTES,
    open_count: opens,
    event_nr: events.count,
    filter: target?.filter?.type.name ?? 'none',
    removal,
  };
  return Object.entries(lines)
    .map(([key, value]) => `${key} ${value}\n`)
    .join('');
}

function live(slot: Slot): LiveTarget {
  if (slot.live) return slot.live;
  throw new DmError('ENODEV', `${slot.name}: no table is loaded`);
}

function attached(slot: Slot, name: string): Filter {
  const { filter } = live(slot);
  if (filter?.type.name === name) return filter.view;
  throw new DmError('ENOENT', `${slot.name}: filter ${name} is not attached`);
}

function filterLine({ filter }: LiveTarget): string {
  return filter ? `${filter.type.name} ${filter.view.args()}`.trimEnd() : 'none';
}

/** What was counted so far, then what is so now. */
function statsText(slot: Slot, { passthrough, inFlight }: FilesContext): string {
  const numbers = {
    ...sumStats(live(slot).stats),
    open: slot.opens,
    in_flight: inFlight(deviceNode(slot.id)),
    passed_through: passthrough.isOpen(slot.id) ? 1 : 0,
  };
  return Object.entries(numbers)
    .map(([name, number]) => `${name} ${number}\n`)
    .join('');
}

function discard({ output }: LiveTarget, text: string): void {
  for (const { offset, length } of parseSectorRanges(text, {
    size: output.size,
    least: 1,
    what: 'discard',
  })) {
    output.discard(offset, length);
  }
}

/** The `device` of a target. */
class TargetOutput implements OutputFile {
  constructor(
    private readonly slot: Slot,
    private readonly registry: Registry,
    private readonly passthrough: Passthrough,
  ) {}

  get size(): number {
    return this.slot.live?.target.size ?? 0;
  }

  get trimGranularity(): number {
    return live(this.slot).target.trimGranularity;
  }

  open(writable: boolean): number | undefined {
    const { slot } = this;
    const { target, filter } = live(slot);
    const claim = this.registry.claimOn(slot);
    if (claim === 'write' || (claim === 'read' && writable)) {
      throw new DmError('EBUSY', `${slot.name}: another target stands on it`);
    }
    // A filter sees every request, and one may be about to be attached.
    const isFree = !slot.changing && !this.registry.isHeld(slot);
    // Once the kernel passes one open through, it must do so with all.
    const mayPass = filter === undefined && (isFree || this.passthrough.isOpen(slot.id));
    const backingId = mayPass ? this.passthrough.open(slot.id, target) : undefined;
    slot.opens++;
    return backingId;
  }

  flush(): void {
    this.cutOverrun();
  }

  release(writesPassedThrough: boolean): void {
    const { slot } = this;
    slot.opens--;
    try {
      if (writesPassedThrough) this.cutOverrun();
    } catch {
      // FLUSH has told the writer, or nobody is left to tell.
    }
    if (slot.opens === 0) this.passthrough.close(slot.id);
    void this.registry.onLessUse(slot);
  }

  /**
   * With passthrough the kernel writes to the backing file itself, and past the device's end it makes the file longer.
   * A device's size is fixed: what is too much goes, and whoever wrote it hears ENOSPC from close(2). A hole was not written: somebody
   * has made the file longer, to let the target grow. What it was grown to may be no whole number of sectors: it is passed through no
   * more then, but for those who have it open.
   */
  private cutOverrun(): void {
    const { slot } = this;
    const file = slot.live && this.passthrough.fileOf(slot.id);
    if (!file) return;
    const { fd, size, path } = file;
    if (fstatSync(fd).size <= size || !hasData(fd, size)) return;
    ftruncateSync(fd, size);
    slot.events.raise(`write_past_end size=${size}`);
    throw new DmError('ENOSPC', `${path}: written past the device's end`);
  }
}
