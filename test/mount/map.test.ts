/** `dmfuse map` on real targets: the cells that a picture must show in which colour follow from what was done to the target. */
import { closeSync, openSync, readFileSync, writeFileSync, writeSync } from 'node:fs';
import { type DecodedPng, decode } from 'fast-png';
import { describe, expect } from 'vitest';
import { Grid, type SectorClass } from '../../mount/cli/picture/grid.js';
import { type Frame, layOut } from '../../mount/cli/picture/layout.js';
import { type Lab, type Mount, mountTest } from './harness.js';
import { colorsAt } from './pixels.js';

const WIDTH = 1040;
/** As large as a file of ext4 can be, to a mebibyte. */
const HUGE = 2 ** 44 - 2 ** 20;

interface Drawn {
  readonly panels: readonly {
    readonly title: string;
    readonly note: string;
    readonly cellSectors: number;
    readonly classes: readonly (SectorClass & { readonly sectors: number })[];
  }[];
  readonly image: DecodedPng;
  readonly frames: readonly Frame[];
}

async function draw(lab: Lab, mount: Mount, name: string): Promise<Drawn> {
  const { panels, type, lengthSectors } = JSON.parse(await lab.dmfuseOk('map', mount.point, name, '--json'));
  await lab.dmfuseOk('map', mount.point, name, '-o', `${name}.png`);
  const empty = (panels as Drawn['panels']).map(({ title, note, classes }) => ({
    title,
    note,
    grid: new Grid(lengthSectors, classes),
  }));
  const { frames } = layOut({ name, type, sectors: lengthSectors }, empty, WIDTH);
  return { panels, image: decode(readFileSync(lab.path(`${name}.png`))), frames };
}

/** The names of the classes whose colours are where a sector is. */
function shown({ panels, image, frames }: Drawn, sector: number, panel = 0): string[] {
  const { cellSectors, classes } = panels[panel]!;
  const colors = colorsAt(image, frames[panel]!, Math.floor(sector / cellSectors));
  return classes.filter(({ color }) => colors.includes(color)).map(({ name }) => name);
}

function totals({ panels }: Drawn, panel = 0): Record<string, number> {
  return Object.fromEntries(panels[panel]!.classes.map(({ name, sectors }) => [name, sectors]));
}

function write(mount: Mount, name: string, sector: number, sectors: number): void {
  const fd = openSync(mount.path(name, 'device'), 'r+');
  writeSync(fd, Buffer.alloc(512 * sectors, 7), 0, 512 * sectors, 512 * sector);
  closeSync(fd);
}

describe('dmfuse map', () => {
  mountTest('bow: each range; csum: what was found bad; each where it is', async (lab) => {
    await lab.sh('truncate -s 1G bow.img; truncate -s 64M csum.img');
    await lab.dmfuseOk('csum', 'format', 'csum.img');
    const mount = await lab.mount({ args: ['--create', `b bow ${lab.path('bow.img')}`] });
    writeFileSync(mount.path('b/discard'), '1048576 262144\n');
    writeFileSync(mount.path('b/state'), '1');
    write(mount, 'b', 8, 8);
    write(mount, 'b', 524_288, 1024);
    const bow = await draw(lab, mount, 'b');
    expect(bow.panels[0]).toMatchObject({ title: 'ranges', note: 'state 1', cellSectors: 128 });
    expect(totals(bow).Changed).toBe(1032);
    // Of those that matter, the heaviest.
    expect(shown(bow, 0)).toEqual(['Sector0']);
    expect(shown(bow, 524_288)).toEqual(['Changed']);
    expect(shown(bow, 524_288 + 1024)).toEqual(['Unchanged']);
    expect(shown(bow, 1_300_000)).toEqual(['Free']);
    expect(shown(bow, 1_048_576 + 256)).toContain('Backup');

    // Sector 5000 of the data: what is below says where that is.
    await mount.create('c', `csum ${lab.path('csum.img')} 0`);
    write(mount, 'c', 5000, 1);
    await lab.dmfuseOk('remove', mount.point, 'c');
    await lab.python(
      `import mmap, sys
f = open(sys.argv[1], 'r+b')
m = mmap.mmap(f.fileno(), 0)
m[m.find(bytes([7]) * 512) + 9] ^= 1`,
      lab.path('csum.img'),
    );
    await mount.create('c', `csum ${lab.path('csum.img')} 0`);
    await lab.shell(`dd if=${mount.path('c/device')} of=/dev/null bs=512 skip=5000 count=1 iflag=direct`);
    const csum = await draw(lab, mount, 'c');
    expect(totals(csum)['bad sectors']).toBe(1);
    expect(shown(csum, 5000)).toContain('bad sectors');
    expect(shown(csum, 5000 + csum.panels[0]!.cellSectors)).toEqual(['no error known']);
  });

  mountTest('cow: the layer that a sector is read from; clone: what has come over', async (lab) => {
    await lab.sh('truncate -s 1G base.img src.img dest.img; truncate -s 4M meta.img');
    await lab.dmfuseOk('cow', 'create', 'base.img', 'l1');
    const below = `cow ${lab.path('base.img')} 0 ${lab.path('l1.bitmap')} ${lab.path('l1')} 0`;
    const mount = await lab.mount({ args: ['--create', `v ${below}`] });
    write(mount, 'v', 1000, 2000);
    await lab.dmfuseOk('remove', mount.point, 'v');
    await lab.dmfuseOk('cow', 'create', 'l1', 'l2', '--size', '2097152');
    await mount.create('v', `${below} ${lab.path('l2.bitmap')} ${lab.path('l2')} 0`);
    write(mount, 'v', 2000, 300);
    write(mount, 'v', 1_000_003, 1);
    const [base, l1, l2] = [
      `base ${lab.path('base.img')}`,
      `layer 1 ${lab.path('l1')}`,
      `layer 2 ${lab.path('l2')}`,
    ];
    const cow = await draw(lab, mount, 'v');
    expect(totals(cow)).toEqual({ [base]: 2 ** 21 - 2001, [l1]: 1700, [l2]: 301 });
    expect(shown(cow, 0)).toEqual([base]);
    expect(shown(cow, 1500)).toEqual([l1]);
    expect(shown(cow, 2100)).toEqual([l2]);
    expect(shown(cow, 1_000_003)).toContain(l2);

    const [meta, dest, src] = ['meta.img', 'dest.img', 'src.img'].map((name) => lab.path(name));
    await mount.create('k', `clone ${meta} ${dest} ${src} 8 1 no_hydration`);
    write(mount, 'k', 4096, 2048);
    write(mount, 'k', 2_000_000, 8);
    const clone = await draw(lab, mount, 'k');
    expect(totals(clone)).toEqual({ 'on the source': 2 ** 21 - 2056, hydrated: 2056 });
    expect(shown(clone, 4096)).toEqual(['hydrated']);
    expect(shown(clone, 8192)).toEqual(['on the source']);
    expect(shown(clone, 2_000_000)).toContain('hydrated');
  });

  mountTest('16 TiB: one sector of a layer, one block of data, one changed block are seen', async (lab) => {
    await lab.sh(`truncate -s ${HUGE} lin.img base.img; touch diff`);
    await lab.dmfuseOk('cow', 'create', 'base.img', 'l1');
    const mount = await lab.mount({
      args: [
        ...['--create', `l linear ${lab.path('lin.img')} 0`],
        ...['--create', `v cow ${lab.path('base.img')} 0 ${lab.path('l1.bitmap')} ${lab.path('l1')} 0`],
      ],
    });
    const sector = 11 * 2 ** 31 + 12_345;
    write(mount, 'v', sector, 1);
    const cow = await draw(lab, mount, 'v');
    expect(cow.panels[0]!.cellSectors).toBe(2 ** 21);
    expect(shown(cow, sector)).toContain(`layer 1 ${lab.path('l1')}`);
    expect(shown(cow, sector + 2 ** 22)).toEqual([`base ${lab.path('base.img')}`]);

    write(mount, 'l', sector, 1);
    await lab.sh(`cd ${mount.point}; echo blksnap >l/filter; mkdir snapshots/s; echo 'add l' >snapshots/s/devices
      echo '${lab.path('diff')} 0 2097152' >snapshots/s/storage; echo 1 >snapshots/s/take
      echo '${sector} 1' >l/cbtdirty`);
    const linear = await draw(lab, mount, 'l');
    expect(linear.panels.map(({ title }) => title)).toEqual(['data and holes', 'changed blocks (blksnap)']);
    expect(totals(linear)).toEqual({ hole: HUGE / 512 - 8, data: 8 });
    expect(shown(linear, sector)).toContain('data');
    expect(shown(linear, sector, 1)).toContain('changed before take 1, the last');
    expect(shown(linear, sector + 2 ** 23, 1)).toEqual(['never changed']);
  });

  mountTest('SVG, stdout, letters, and what is refused', async (lab) => {
    await lab.sh('truncate -s 1M x.img');
    const mount = await lab.mount({ args: ['--create', `x linear ${lab.path('x.img')} 0`] });
    write(mount, 'x', 64, 64);
    const { point } = mount;
    await lab.dmfuseOk('map', point, 'x', '-o', 'x.svg', '--width', '640');
    const svg = readFileSync(lab.path('x.svg'), 'utf8');
    expect(svg).toMatch(/<svg [^>]*width="640"/);
    expect(await lab.dmfuseOk('map', point, 'x', '-o', '-', '--format', 'svg', '--width', '640')).toBe(svg);
    expect(await lab.dmfuseOk('map', point, 'x')).toMatch(
      /^x: linear, 1 MiB \(2048 sectors\)\n\ndata and holes; 1 letter = 512 B\n {8}0 \.{64}\n {3}32 KiB 1{64}\n {3}64 KiB \.{64}\n/,
    );
    await lab.sh('ln x.svg kept; ln -s /dev/full full');
    write(mount, 'x', 512, 64);
    await lab.dmfuseOk('map', point, 'x', '-o', 'x.svg', '--width', '640');
    expect(readFileSync(lab.path('x.svg'), 'utf8')).not.toBe(svg);
    // Who has the old one open reads it to its end.
    expect(readFileSync(lab.path('kept'), 'utf8')).toBe(svg);
    expect(await lab.refusal('map', point, 'x', '-o', 'no/x.svg')).toBe('no/x.svg: there is no such folder');
    expect(await lab.refusal('map', point, 'x', '-o', 'full', '--format', 'svg')).toBe(
      'full: no space is left there',
    );
    expect(await lab.refusal('map', point, 'none', '-o', 'n.png')).toMatch(
      /^none: there is no target of that name/,
    );
    await lab.sh(`mkdir ${mount.path('empty')}`);
    expect(await lab.refusal('map', point, 'empty')).toBe('map empty: no table is loaded');
    await mount.create('u', 'linear @x 0');
    await lab.dmfuseOk('suspend', point, 'x');
    expect(await lab.refusal('map', point, 'u')).toBe('x: suspended; resume it first');
    await lab.dmfuseOk('resume', point, 'x');
    await lab.sh(`rmdir ${mount.path('u')}`);
    for (const args of [
      ['-o', 'x.jpg'],
      ['-o', '-'],
      ['--width', '10'],
      ['--json', '-o', 'x.png'],
    ]) {
      expect(await lab.dmfuse('map', point, 'x', ...args)).toMatchObject({ code: 64, stdout: '' });
    }
  });
});
