/** `dmfuse cow`: layers of stacks that are not attached. What a stack shows is computed here, sector by sector. */
import { existsSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { describe, expect } from 'vitest';
import { Prng } from '../../src/device/prng.js';
import { bitmapLayout, encodeMagicBlock } from '../../src/formats/cow-bitmap.js';
import { type Lab, mountTest, until } from './harness.js';

const SECTORS = 8192;

/** Runs a command that fails: exit 1, nothing on stdout, one line on stderr, and no file of the lab has changed. */
async function refusal(lab: Lab, ...args: string[]): Promise<string> {
  const before = filesOf(lab);
  const message = await lab.refusal('cow', ...args);
  expect(filesOf(lab)).toEqual(before);
  return message;
}

/** The files of the lab's folder, each with its content's first and last change. */
function filesOf(lab: Lab): object[] {
  return readdirSync(lab.folder)
    .sort()
    .map((name) => {
      const { size, mtimeMs } = statSync(lab.path(name));
      return { name, size, mtimeMs };
    });
}

/** A base of random bytes, and layers `l1`… that each hold some random runs of random bytes. */
function makeStack(lab: Lab, layers: number, sectors = SECTORS, seed = 1): string[] {
  const rng = new Prng(seed);
  const names = ['base.img', ...Array.from({ length: layers }, (_, index) => `l${index + 1}`)];
  writeFileSync(lab.path('base.img'), rng.bytes(sectors * 512));
  for (const name of names.slice(1)) {
    const data = Buffer.alloc(sectors * 512);
    const bitmap = Buffer.alloc(bitmapLayout(sectors).minimumBytes);
    for (let runs = 0; runs < 20; runs++) {
      const first = rng.below(sectors);
      const count = Math.min(sectors - first, 1 + rng.below(sectors / 16));
      rng.bytes(count * 512).forEach((byte, index) => {
        data[first * 512 + index] = byte;
      });
      for (let sector = first; sector < first + count; sector++) bitmap[sector >> 3]! |= 1 << (sector & 7);
    }
    encodeMagicBlock(bitmapLayout(sectors)).forEach((byte, index) => {
      bitmap[bitmapLayout(sectors).magicOffset + index] = byte;
    });
    writeFileSync(lab.path(name), data);
    writeFileSync(lab.path(`${name}.bitmap`), bitmap);
  }
  return names;
}

/** What a stack shows. */
function shown(lab: Lab, [base, ...layers]: readonly string[]): Buffer {
  const content = readFileSync(lab.path(base!));
  for (const layer of layers) {
    const data = readFileSync(lab.path(layer));
    const bitmap = readFileSync(lab.path(`${layer}.bitmap`));
    for (let sector = 0; sector < content.length / 512; sector++) {
      if ((bitmap[sector >> 3]! & (1 << (sector & 7))) === 0) continue;
      data.copy(content, sector * 512, sector * 512, (sector + 1) * 512);
    }
  }
  return content;
}

/** How many sectors a layer says it holds. */
function held(lab: Lab, layer: string, sectors = SECTORS): number {
  const bits = readFileSync(lab.path(`${layer}.bitmap`)).subarray(0, sectors / 8);
  return bits.reduce((sum, byte) => sum + byte.toString(2).replaceAll('0', '').length, 0);
}

function expectSame(actual: Buffer, expected: Buffer, what: string): void {
  expect(actual.equals(expected), what).toBe(true);
}

describe('dmfuse cow create', () => {
  mountTest('prints its part of a table, and a line that a mount takes', async (lab) => {
    await lab.sh(`head -c 4M /dev/urandom >base.img`);
    const printed = (await lab.dmfuseOk('cow', 'create', 'base.img', "a layer's")).split('\n');
    const fragment = [`a\\ layer's.bitmap`, `a\\ layer's`].map((word) => lab.path(word)).join(' ');
    expect(printed[0]).toBe(`${fragment} 0`);
    expect(printed[1]).toMatch(/^example: dmfuse create MNT NAME '.*'$/);
    expect(statSync(lab.path("a layer's"))).toMatchObject({ size: 4 << 20, blocks: 0 });
    expect(statSync(lab.path("a layer's.bitmap")).size).toBe(102_400);

    const { point, path, umount } = await lab.mount();
    const main = `${process.execPath} ${new URL('../../dist/main.js', import.meta.url).pathname}`;
    const example = printed[1]!.replace('example: dmfuse create MNT NAME', `${main} create ${point} x`);
    await lab.sh(example);
    await lab.sh(`cmp base.img ${path('x/device')}
      head -c 1M /dev/urandom | dd of=${path('x/device')} bs=64K seek=3 conv=notrunc,fsync status=none
      cp ${path('x/device')} expected`);
    const table = (await lab.sh(`cat ${path('x/table')}`)).trim();
    // While the stack is attached: its next top can be made, the stack itself is in use.
    const second = JSON.parse(await lab.dmfuseOk('cow', 'create', table, 'l2', '--json'));
    const layers = `${fragment} 0 ${lab.path('l2.bitmap')} ${lab.path('l2')} 0`;
    expect(second).toEqual({
      output_version: 1,
      layerPath: lab.path('l2'),
      bitmapPath: lab.path('l2.bitmap'),
      lengthSectors: SECTORS,
      fragment: `${lab.path('l2.bitmap')} ${lab.path('l2')} 0`,
      table: `0 ${SECTORS} cow ${lab.path('base.img')} 0 ${layers}`,
    });
    const busy = [refusal(lab, 'commit', table), refusal(lab, 'flatten', table, 'out')];
    for (const reason of await Promise.all(busy)) {
      expect(reason).toMatch(/in use by another process, which holds a lock on it$/);
    }
    await umount();
    await lab.dmfuseOk('cow', 'flatten', second.table, 'flat');
    await lab.sh('cmp expected flat');
    expect(await lab.dmfuseOk('cow', 'commit', table)).toBe(
      `merged: 2048 sectors of ${lab.path("a layer's")} into ${lab.path('base.img')}\n`,
    );
    await lab.sh('cmp expected base.img');
  });

  mountTest('on another layer; shorter than its base', async (lab) => {
    await lab.sh('truncate -s 4M base.img');
    await lab.dmfuseOk('cow', 'create', 'base.img', 'l1', '--size', '4097');
    expect(statSync(lab.path('l1')).size).toBe(4097 * 512);
    expect((await lab.dmfuseOk('cow', 'create', 'l1', 'l2')).split('\n')[1]).toBe(
      `example: dmfuse create MNT NAME 'cow … ${lab.path('l1.bitmap')} ${lab.path('l1')} 0 ` +
        `${lab.path('l2.bitmap')} ${lab.path('l2')} 0'`,
    );
    const table = `0 4097 cow base.img 0 l1.bitmap l1 0 l2.bitmap l2 0`;
    await lab.dmfuseOk('cow', 'flatten', table, 'out');
    expect(statSync(lab.path('out'))).toMatchObject({ size: 4097 * 512, blocks: 0 });
    expect(await refusal(lab, 'flatten', 'base.img', 'l1', 'out2')).toMatch(
      /l1 has 4097 sectors from sector 0 on, the stack needs 8192$/,
    );
  });

  mountTest('refuses what exists, what is too long, and what cannot be frozen', async (lab) => {
    makeStack(lab, 1);
    expect(await refusal(lab, 'create', 'base.img', 'l1')).toBe(
      'l1: exists already; take another name, or remove it',
    );
    expect(await refusal(lab, 'create', 'base.img', 'l2', '--size', '8193')).toBe(
      'base.img has 8192 sectors, a stack on it cannot have 8193; choose another --size',
    );
    expect(await refusal(lab, 'create', 'none', 'l2')).toBe('none: no such file or device');
    expect(await refusal(lab, 'create', 'base.img', 'no/l2')).toBe('no/l2: there is no such folder');
    expect(await refusal(lab, 'create', 'l1', 'l2', '--size', '100')).toMatch(/^l1.bitmap: length mismatch/);
    expect(await refusal(lab, 'create', 'cow base.img', 'l2')).toMatch(/^cow needs a base with its offset/);
    writeFileSync(lab.path('l1.bitmap'), Buffer.alloc(102_400));
    expect(await refusal(lab, 'create', 'l1', 'l2')).toMatch(
      /^l1.bitmap: all zero: l1 was never in use; attach/,
    );
  });
});

describe('dmfuse cow commit', () => {
  mountTest('merges layer after layer down, until the base has it all', async (lab) => {
    const stack = makeStack(lab, 3);
    const content = shown(lab, stack);
    const base = await lab.sha256('base.img');
    const sectors = held(lab, 'l3');
    const json = JSON.parse(await lab.dmfuseOk('cow', 'commit', ...stack, '--json'));
    expect(json).toEqual({
      output_version: 1,
      layerPath: lab.path('l3'),
      belowPath: lab.path('l2'),
      mergedSectors: sectors,
      zeroedSectors: 0,
    });
    expectSame(shown(lab, stack), content, 'after the first');
    expect([held(lab, 'l3'), statSync(lab.path('l3')).blocks]).toEqual([0, 0]);
    expect(await lab.sha256('base.img')).toBe(base);
    expect(await lab.dmfuseOk('cow', 'commit', ...stack)).toBe(
      `nothing to merge: ${lab.path('l3')} holds no sectors\n`,
    );
    await lab.dmfuseOk('cow', 'commit', ...stack.slice(0, 3));
    // The lower layers as a table line, the last one as a member.
    await lab.dmfuseOk('cow', 'commit', 'cow base.img 0', 'l1');
    expectSame(readFileSync(lab.path('base.img')), content, 'the base');
    expectSame(shown(lab, stack), content, 'at the end');
  });

  mountTest('killed anywhere, the stack shows the same, and the next one ends', async (lab) => {
    const sectors = 49_152;
    const stack = makeStack(lab, 2, sectors);
    const content = shown(lab, stack);
    for (let delay = 0; ; delay = Math.max(1, delay * 3)) {
      const before = statSync(lab.path('l1')).mtimeMs;
      const commit = lab.startDmfuse('cow', 'commit', ...stack);
      const hasBegun = () => statSync(lab.path('l1')).mtimeMs !== before || !commit.isRunning;
      await until(hasBegun, 'the commit to write');
      await new Promise((resolve) => setTimeout(resolve, delay));
      commit.kill();
      const { code } = await commit.ended;
      expectSame(shown(lab, stack), content, `after ${delay} ms`);
      if (code === 0) break;
      expect(code).toBe(null);
    }
    expect(held(lab, 'l2', sectors)).toBe(0);
    expectSame(shown(lab, stack.slice(0, 2)), content, 'without the top');
  });

  mountTest('refuses what is no stack, and changes nothing', async (lab) => {
    makeStack(lab, 2);
    expect(await refusal(lab, 'commit', 'base.img')).toMatch(
      /^base.img: a base alone has nothing to merge; name its layers too, bottom to top$/,
    );
    expect(await refusal(lab, 'commit', 'l1', 'l2')).toMatch(
      /^l1 is a layer, for l1.bitmap is there: name the base first/,
    );
    expect(await refusal(lab, 'commit', 'base.img', 'l1', 'l1')).toMatch(
      /l1.bitmap and .*l1.bitmap are the same: what is written is named once$/,
    );
    expect(await refusal(lab, 'commit', 'cow base.img 0 l1.bitmap l1')).toMatch(/^cow needs a base with its/);
    expect(await refusal(lab, 'commit', 'cow @x 0 l1.bitmap l1 0')).toMatch(
      /^@x: only a mount has targets by name; name the file or device that it stands on$/,
    );
    expect(await refusal(lab, 'commit', 'base.img', 'l3')).toMatch(/l3.bitmap: no such file or device$/);
    await lab.sh('truncate -s 1M l2');
    expect(await refusal(lab, 'commit', 'base.img', 'l1', 'l2')).toMatch(/l2 has 2048 sectors from sector 0/);
    await lab.sh('truncate -s 4M l2; head -c 102400 /dev/zero >l1.bitmap');
    expect(await refusal(lab, 'commit', 'base.img', 'l1', 'l2')).toMatch(
      /l1.bitmap: all zero, without a magic block/,
    );
    await lab.sh('head -c 102400 /dev/urandom >l1.bitmap');
    expect(await refusal(lab, 'commit', 'base.img', 'l1', 'l2')).toMatch(
      /l1.bitmap: byte 98304 has no magic block/,
    );
  });

  mountTest('a top whose bitmap is new holds nothing: it is left as it is', async (lab) => {
    makeStack(lab, 2);
    await lab.sh('head -c 102400 /dev/zero >l2.bitmap');
    const before = filesOf(lab);
    expect(await lab.dmfuseOk('cow', 'commit', 'base.img', 'l1', 'l2')).toMatch(/^nothing to merge/);
    expect(filesOf(lab)).toEqual(before);
  });
});

describe('dmfuse cow flatten', () => {
  mountTest('one sparse image of what the stack shows; the stack stays as it is', async (lab) => {
    const stack = makeStack(lab, 2);
    await lab.sh('truncate -s 1M base.img; truncate -s 4M base.img');
    const content = shown(lab, stack);
    const before = await lab.treeState(lab.folder);
    const json = JSON.parse(await lab.dmfuseOk('cow', 'flatten', '--json', ...stack, 'out'));
    expectSame(readFileSync(lab.path('out')), content, 'the image');
    const { size, blocks, mode } = statSync(lab.path('out'));
    expect(json).toEqual({
      output_version: 1,
      outPath: lab.path('out'),
      lengthSectors: SECTORS,
      writtenBytes: expect.any(Number),
    });
    expect(json.writtenBytes).toBeLessThan(size);
    // What the file system needs for itself, too.
    expect(blocks * 512).toBeLessThan(json.writtenBytes + 65_536);
    expect(mode & 0o777).toBe(0o600);
    expect(await refusal(lab, 'flatten', ...stack, 'out')).toBe(
      'out: exists already; take another name, or remove it',
    );
    expect(await refusal(lab, 'flatten', '--force', ...stack, 'out')).toMatch(/^out: exists already/);
    expect(await refusal(lab, 'flatten', ...stack, 'no/out')).toBe('no/out: there is no such folder');
    await lab.sh('rm out');
    expect((await lab.treeState(lab.folder)).replace(/^\. .*$/m, '')).toBe(before.replace(/^\. .*$/m, ''));
    // A base alone, and through a table line at an offset.
    await lab.dmfuseOk('cow', 'flatten', 'base.img', 'copy');
    await lab.sh('cmp base.img copy');
    await lab.dmfuseOk('cow', 'flatten', '0 100 cow base.img 8', 'part');
    await lab.sh('cmp part <(tail -c +4097 base.img | head -c 51200)');
  });

  mountTest('to a block device only with --force', async (lab) => {
    const stack = makeStack(lab, 1);
    const content = shown(lab, stack);
    await lab.sh('head -c 5M /dev/urandom >disk; head -c 1M /dev/urandom >small; cp disk before');
    const [disk, small] = [await lab.loop(lab.path('disk')), await lab.loop(lab.path('small'))];
    lab.onClose(async () => void (await lab.unloop(disk, small)));
    expect(await refusal(lab, 'flatten', ...stack, disk)).toBe(
      `${disk}: exists already; take another name, or remove it`,
    );
    expect(await refusal(lab, 'flatten', '--force', ...stack, small)).toBe(
      `${small} has 1048576 bytes, the stack 4194304; take a larger device`,
    );
    await lab.dmfuseOk('cow', 'flatten', '--force', ...stack, disk);
    expectSame(readFileSync(lab.path('disk')).subarray(0, content.length), content, 'the device');
    await lab.sh('cmp <(tail -c +4194305 disk) <(tail -c +4194305 before)');
  });

  for (const signal of ['SIGINT', 'SIGKILL'] as const) {
    mountTest(`${signal}: no half image has the name`, async (lab) => {
      await lab.sh('head -c 400M /dev/zero >base.img');
      const temporary = () => readdirSync(lab.folder).filter((name) => name.startsWith('.dmfuse-'));
      const flatten = lab.startDmfuse('cow', 'flatten', 'base.img', 'out');
      await until(() => temporary().length > 0 || !flatten.isRunning, 'the flattening to begin');
      flatten.signal(signal);
      const { code, stderr } = await flatten.ended;
      // It may have been faster than the signal.
      if (existsSync(lab.path('out'))) {
        expect([code, temporary()]).toEqual([0, []]);
        await lab.sh('cmp base.img out');
      } else if (signal === 'SIGKILL') {
        expect(code).toBe(null);
      } else {
        expect([code, stderr]).toEqual([130, 'dmfuse: interrupted: out was not made\n']);
        expect(temporary()).toEqual([]);
      }
    });
  }
});

describe('dmfuse cow map', () => {
  mountTest('lists the runs of sectors that a layer holds', async (lab) => {
    const stack = makeStack(lab, 2);
    const bitmap = readFileSync(lab.path('l2.bitmap'));
    const runs: { startSector: number; countSectors: number }[] = [];
    for (let sector = 0; sector < SECTORS; sector++) {
      if ((bitmap[sector >> 3]! & (1 << (sector & 7))) === 0) continue;
      const last = runs.at(-1);
      if (last && last.startSector + last.countSectors === sector) last.countSectors++;
      else runs.push({ startSector: sector, countSectors: 1 });
    }
    const before = filesOf(lab);
    const lines = runs.map(({ startSector, countSectors }) => `${startSector} ${countSectors}\n`).join('');
    for (const words of [['l2'], stack, ['cow base.img 0 l2.bitmap l2 0']]) {
      expect(await lab.dmfuseOk('cow', 'map', ...words)).toBe(lines);
    }
    expect(JSON.parse(await lab.dmfuseOk('cow', 'map', 'l2', '--json'))).toEqual({
      output_version: 1,
      layerPath: lab.path('l2'),
      lengthSectors: SECTORS,
      heldSectors: held(lab, 'l2'),
      runs,
    });
    expect(filesOf(lab)).toEqual(before);
    expect(await refusal(lab, 'map', 'base.img')).toMatch(/^base.img: a base holds all of its sectors/);
  });
});

describe('dmfuse cow create --import-seed', () => {
  /** A layer of the reference: sector 5 was written; sector 5 + 4096, which shares its bit, is data below and zeros here. */
  async function seedLayer(lab: Lab): Promise<void> {
    const bitmap = Buffer.alloc(102_400);
    bitmap[0] = 1 << 5;
    bitmap.set(encodeMagicBlock(bitmapLayout(SECTORS)), bitmapLayout(SECTORS).magicOffset);
    writeFileSync(lab.path('old'), bitmap);
    await lab.sh(`head -c 4M /dev/urandom >base.img; truncate -s 4M l1
      head -c 512 /dev/urandom | dd of=l1 bs=512 seek=5 conv=notrunc status=none`);
  }

  mountTest('infers the bits, says so, and touches neither data nor the old bitmap', async (lab) => {
    await seedLayer(lab);
    const before = filesOf(lab);
    const text = await lab.dmfuseOk('cow', 'create', 'base.img', 'l1', '--import-seed', 'old');
    expect(text).toMatch(
      /\nimported: 1 bits, 2 sectors taken, 2 of them uncertain, of which 1 are zeros in l1 and data below\nThis is an inference: /,
    );
    expect(filesOf(lab).filter((file) => (file as { name: string }).name !== 'l1.bitmap')).toEqual(before);
    const bits = readFileSync(lab.path('l1.bitmap'));
    expect([bits[0], bits[512], held(lab, 'l1')]).toEqual([1 << 5, 1 << 5, 2]);
    await lab.dmfuseOk('cow', 'flatten', 'base.img', 'l1', 'out');
    await lab.sh('rm l1.bitmap');
    const json = JSON.parse(
      await lab.dmfuseOk('cow', 'create', 'base.img', 'l1', '--import-seed', 'old', '--json'),
    );
    expect(json.imported).toEqual({ bits: 1, sectors: 2, uncertainSectors: 2, uncertainZeroSectors: 1 });
  });

  mountTest('refuses what cannot be imported, and makes nothing', async (lab) => {
    await seedLayer(lab);
    const importing = (...args: string[]) => refusal(lab, 'create', ...args, '--import-seed', 'old');
    expect(await importing('base.img', 'none')).toBe('none: no such file or device');
    await lab.sh('cp old l1.bitmap');
    expect(await importing('base.img', 'l1')).toMatch(/^l1.bitmap is where the new bitmap goes; give/);
    await lab.sh('cp l1 l2');
    expect(await importing('l1', 'l2')).toMatch(/^l1 is a layer itself: give the whole stack below l2/);
    await lab.sh(`rm l1.bitmap; printf '\\1' | dd of=old bs=1 seek=512 conv=notrunc status=none`);
    expect(await importing('base.img', 'l1')).toMatch(
      /^old: byte 512 is not zero, where a bitmap of the ref/,
    );
    await lab.sh('truncate -s 1M l2');
    expect(await importing('base.img', 'l2')).toMatch(/^l2 has 1048576 bytes, the stack 4194304$/);
  });
});
