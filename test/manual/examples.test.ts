/** Every example of the manuals and of README.md does what the text says. */
import { describe, expect, test } from 'vitest';
import { mountTest } from '../mount/harness.js';
import { type ExampleCase, manualPages, markdownExamples, pageExamples, runExamples } from './examples.js';

const IS_ROLLED_BACK = `
  e2fsck -fn /img/disk.img
  cmp <(debugfs -R 'cat kept' /img/disk.img) <(debugfs -R 'cat kept' /img/base.img)
  if debugfs -R 'stat made' /img/disk.img | grep Inode; then exit 1; fi`;
const IS_KEPT = `
  e2fsck -fn /img/disk.img
  debugfs -R 'stat made' /img/disk.img | grep -q Inode`;

/** What is run, by the section's title: all blocks in order, or as the cases say. */
const CASES: Readonly<Record<string, readonly ExampleCase[]>> = {
  'README.md: Try an update, take it back': [
    { blocks: [0, 1], prepare: 'rmdir /mnt/dm', check: IS_KEPT },
    { blocks: [0, 2], prepare: 'rmdir /mnt/dm', check: IS_ROLLED_BACK },
  ],
  'README.md: Know that what you read is what you wrote': [{ before: [[/^dmfuse csum check/, 'detach']] }],
  'README.md: A hundred machines on one image': [
    {
      before: [[/^dmfuse (mount|cow (create|commit))/, 'detach']],
      check: 'e2fsck -fn /img/out.img; cmp /img/base.img /img/remote.img',
    },
  ],
  'README.md: Work on a copy while it is being copied': [
    { check: 'dmfuse clone check /img/meta; cmp /img/copy.img /img/remote.img' },
  ],
  'README.md: A disk that grows while it is in use': [
    {
      before: [[/^losetup -c/, '[[ $(cat /mnt/dm/data/size) == $(($(stat -c %s /img/disk.img) / 512)) ]]']],
      check: 'e2fsck -fn /img/disk.img',
    },
  ],
  'README.md: Backups: snapshots with changed-block tracking': [
    {
      before: [[/^dmfuse snapshot run .* bash /, 'work /srv']],
      check: `
        e2fsck -fn /backup/sys.img
        cmp <(debugfs -R 'cat made' /img/disk.img) <(debugfs -R 'cat made' /backup/sys.img)`,
    },
  ],
  'dmfuse.8: A checkpoint, and back': [{ check: IS_ROLLED_BACK }],
  'dmfuse.8: With the shell alone': [{}],
  'dmfuse.8: Targets on targets': [{}],
  'dmfuse.8: Hold I/O for a copy, and let a disk grow': [
    {
      before: [[/^umount/, '[ "$(cat /mnt/dm/sys/size)" = 196608 ]']],
      // What was frozen and held is a whole file system; what has grown is one of the new size.
      check: `
        e2fsck -fn /img/copy.img
        e2fsck -fn /img/disk.img
        dumpe2fs -h /img/disk.img | grep -Eq 'Block count: +(24576|98304)$'`,
    },
  ],
  'dmfuse.8: Remove and rename what is in use': [{ before: [[/^dmfuse umount/, 'until_gone /mnt/dm/sys']] }],
  'dmfuse.8: See what a target does': [
    { check: "grep -q '^dmfuse_bow_state{.*} 0$' /img/dmfuse.prom; grep -q '</svg>' /img/sys.svg" },
  ],
  'dmfuse.8: By another transport': [
    { before: [[/^cat/, "grep -q '^transport fuse-native$' /mnt/dm/.dmfuse"]] },
  ],
  'mount.dmfuse.8: A line of fstab': [
    {
      before: [
        [
          /^dmfuse ls/,
          "findmnt -n -o SOURCE /mnt/dm | grep -qx /etc/dmfuse/vm.tab; grep -q '^blksnap' /mnt/dm/disk/filter",
        ],
      ],
    },
  ],
  'mount.dmfuse.8: Keep what there is now': [
    { before: [[/^dmfuse status/, "grep -qx '0 131072 bow @disk 1 block_size:4096' /mnt/dm/sys/table"]] },
  ],
  'dmfuse-bow.8: Try an update': [{ check: IS_ROLLED_BACK }],
  'dmfuse-bow.8: Commit': [{ check: IS_KEPT }],
  'dmfuse-csum.8: A disk that knows what it holds': [{}],
  'dmfuse-csum.8: Tables on a device of their own': [{}],
  'dmfuse-cow.8: Two machines on one image': [
    { check: 'e2fsck -fn /img/machine1.img; cmp /img/base.img /img/remote.img' },
  ],
  'dmfuse-cow.8: Freeze a layer, go on above it, merge it': [{}],
  'dmfuse-clone.8: Work on a copy while it is being copied': [{ check: 'cmp /img/disk.img /img/base.img' }],
  'dmfuse-clone.8: Copy at night only': [{}],
  'dmfuse-linear.8: One partition of a disk': [{}],
  'dmfuse-blksnap.8: Full and incremental backup': [{}],
  'dmfuse-blksnap.8: By hand': [{}],
  'dmfuse-log-writes.8: Record a mkfs': [{}],
};

/** What cannot be run, and why. */
const NOT_RUN: Readonly<Record<string, string>> = {
  'README.md: See it work': 'scripts/demo and scripts/test: this is a test of theirs',
  'README.md: Commands': 'a list, no commands: documented.test.ts holds it against the program',
  'README.md: Tables': 'a grammar',
  'README.md: At boot': 'no systemd in a test; services.test.ts does each of these things',
  'README.md: How fast': 'a benchmark of minutes, with a test of its own',
  'README.md: How it works': 'the folders of the source',
};

const sections = [...manualPages().flatMap(pageExamples), ...markdownExamples('README.md')];

test('every example is run, or there is a reason why not', () => {
  const titles = sections.map(({ title }) => title);
  expect([...Object.keys(CASES), ...Object.keys(NOT_RUN)].sort()).toEqual([...titles].sort());
});

describe('examples', () => {
  for (const section of sections) {
    for (const example of CASES[section.title] ?? []) {
      const which = example.blocks ? `, blocks ${example.blocks.join(', ')}` : '';
      mountTest(`${section.title}${which}`, async (lab) => await runExamples(lab, section, example));
    }
  }
});

test('a block that is in no case is found', () => {
  for (const { title, blocks } of sections) {
    const cases = CASES[title] ?? [];
    const run = new Set(cases.flatMap((example) => example.blocks ?? blocks.map((_, i) => i)));
    if (cases.length > 0)
      expect({ title, run: [...run].sort() }).toEqual({ title, run: blocks.map((_, i) => i) });
  }
});
