/** What commands tell of long work while it goes on: never on stdout, and each in the way that was asked for. */
import { readFileSync, statSync, writeFileSync } from 'node:fs';
import { constants } from 'node:os';
import { describe, expect } from 'vitest';
import {
  BOW_MAGIC,
  encodeEntry,
  encodeHeader,
  HEADER_BYTES,
  HEADER_VERSION,
} from '../../src/formats/bow-log.js';
import { type Lab, MAIN, mountTest, type Running, until } from './harness.js';

const LINE = /^format: \d+%, [\d.]+ [KMGT]?i?B of 3\.9 TiB, [\d.]+ [KMGT]?i?B\/s, [\d:]+ left$/;

/** So large that no format comes to its end while the test looks on. */
async function endlessImage(lab: Lab): Promise<string> {
  // In memory: pieces of a file all over 4 TiB take a disk's file system longer to give back than they took to write.
  await lab.sh('mkdir memory; mount -t tmpfs -o size=4G none memory; truncate -s 4T memory/big.img');
  return lab.path('memory/big.img');
}

/** An image whose log names so many bytes that a check of it takes long; all of them are holes. */
async function longLog(lab: Lab): Promise<string> {
  await lab.sh('truncate -s 64G bow.img');
  const block = new Uint8Array(4096);
  const size = 2 ** 31;
  const count = 100;
  const header = {
    magic: BOW_MAGIC,
    headerVersion: HEADER_VERSION,
    headerSize: HEADER_BYTES,
    blockSize: 4096,
    sequence: 0,
    count,
  };
  encodeHeader(block, { ...header, sector0: 8 });
  encodeEntry(block, 0, { sourceSector: 0, destSector: 16, sizeBytes: 4096, checksum: 0 });
  for (let index = 1; index < count; index++) {
    const sector = (n: number) => (n * size) / 512;
    encodeEntry(block, index, {
      sourceSector: sector(2),
      destSector: sector(5),
      sizeBytes: size,
      checksum: 0,
    });
  }
  writeFileSync(lab.path('bow.img'), block, { flag: 'r+' });
  return lab.path('bow.img');
}

/** Whether the process has a handler for SIGUSR1 of its own; Node's would end it, or open the debugger. */
function hearsSigusr1({ pid }: Running): boolean {
  const caught = /^SigCgt:\s*(\S+)/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'));
  return ((BigInt(`0x${caught![1]}`) >> BigInt(constants.signals.SIGUSR1 - 1)) & 1n) === 1n;
}

/** Sends SIGUSR1 until stderr matches. */
async function askUntil(work: Running, pattern: RegExp): Promise<void> {
  await until(() => {
    if (!work.isRunning) throw new Error(`it has ended: ${work.stdout}${work.stderr}`);
    if (hearsSigusr1(work)) work.signal('SIGUSR1');
    return pattern.test(work.stderr);
  }, `${pattern}`);
}

function linesOf(work: Running, pattern: RegExp): string[] {
  return work.stderr.split('\n').filter((line) => pattern.test(line));
}

describe('progress', () => {
  mountTest('a line on SIGUSR1, and nothing without it', async (lab) => {
    const image = await endlessImage(lab);
    const work = lab.startDmfuse('csum', 'format', image);
    // It has worked a while, and said nothing.
    await until(() => statSync(image).blocks > 2000, 'tables to be written');
    expect(work.stderr).toBe('');
    await askUntil(work, /^format: [^\n]* left$/m);
    work.signal('SIGINT');
    expect(await work.ended).toMatchObject({ code: 130, stdout: '' });
    expect(linesOf(work, /^format: /)[0]).toMatch(LINE);
    expect(work.stderr).toMatch(/interrupted, nothing is lost/);
  });

  mountTest('--quiet says nothing, also when it is asked', async (lab) => {
    const image = await endlessImage(lab);
    const work = lab.startDmfuse('csum', 'format', '-q', image);
    await until(() => statSync(image).blocks > 2000, 'tables to be written');
    work.signal('SIGUSR1');
    const before = statSync(image).blocks;
    await until(() => statSync(image).blocks > before + 2000, 'more tables to be written');
    work.signal('SIGINT');
    expect(await work.ended).toMatchObject({ code: 130, stdout: '' });
    expect(work.stderr).toMatch(/^dmfuse: interrupted, [^\n]*\n$/);
  });

  mountTest(
    '--json: lines on stderr, one a second, also on SIGUSR1; the result stays one object',
    async (lab) => {
      const image = await endlessImage(lab);
      const work = lab.startDmfuse('csum', 'format', '--json', image);
      await until(() => linesOf(work, /progress/).length === 2, 'two lines, unasked');
      await askUntil(work, /(progress[^\n]*\n[\s\S]*){3}/);
      work.signal('SIGTERM');
      expect(await work.ended).toMatchObject({ code: 143, stdout: '' });
      const reports = linesOf(work, /progress/).map((line) => JSON.parse(line));
      const bytes_total = reports[0].bytes_total;
      for (const report of reports) {
        expect(report).toEqual({
          output_version: 1,
          kind: 'progress',
          what: 'format',
          bytes: expect.any(Number),
          bytes_total,
          bytes_per_second: expect.any(Number),
          seconds_left: expect.any(Number),
        });
      }
      const done = reports.map(({ bytes }) => bytes);
      expect(done).toEqual([...done].sort((a, b) => a - b));
      expect(Math.abs(bytes_total - 2 ** 42)).toBeLessThan(2 ** 42 / 16);

      await lab.sh('truncate -s 8M small.img');
      const { stdout } = await lab.dmfuse('csum', 'format', '--json', 'small.img');
      expect(JSON.parse(stdout)).toMatchObject({ volumeSectors: 15_871, groups: 256, groupsBefore: 0 });
    },
  );

  mountTest('a bar on a terminal, which is gone at the end', async (lab) => {
    const image = await endlessImage(lab);
    // On one that is narrow it is cut: a line that breaks could not be replaced.
    for (const columns of [200, 40]) {
      const seen = await lab.python(
        `
import os, pty, re, signal, sys
import fcntl, struct, termios
columns = int(sys.argv.pop(1))
pid, fd = pty.fork()
if pid == 0:
    fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack('HHHH', 5, columns, 0, 0))
    os.execv(sys.argv[1], sys.argv[1:])
text, asked = b'', False
while True:
    try:
        piece = os.read(fd, 65536)
    except OSError:
        break
    if not piece:
        break
    text += piece
    if not asked and re.search(rb'\\[#*-*\\] format: .*\\r', text):
        asked = True
        os.kill(pid, signal.SIGINT)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
sys.stdout.write(text.decode())
`,
        String(columns),
        process.execPath,
        MAIN,
        'csum',
        'format',
        image,
      );
      const [code, ...rest] = seen.split('\n');
      expect(code).toBe('130');
      const drawn = rest.join('\n').split('\r\x1b[K');
      expect(drawn[1]).toMatch(/^\[#{0,24}-{0,24}\] format: /);
      if (columns === 200) expect(drawn[1]).toMatch(/: \d+%, .* left$/);
      for (const line of drawn.slice(1, -1)) expect(line.length).toBeLessThan(columns);
      // What is said at the end stands on a line that is clear.
      expect(drawn.at(-1)).toMatch(/^dmfuse: interrupted/);
    }
  });

  mountTest('bow check and restore tell, though they hold no signal back', async (lab) => {
    const image = await longLog(lab);
    for (const verb of ['check', 'restore']) {
      const work = lab.startDmfuse('bow', verb, image);
      const told = new RegExp(`^${verb}: \\d+%, [^\\n]* left$`, 'm');
      await askUntil(work, told);
      work.signal('SIGINT');
      expect(await work.ended).toMatchObject({ code: null, signal: 'SIGINT', stdout: '' });
    }
  });

  mountTest('bow restore --json gives one object', async (lab) => {
    await lab.sh('truncate -s 1M none.img');
    const { code, stdout, stderr } = await lab.dmfuse('bow', 'restore', '--json', 'none.img');
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    expect(JSON.parse(stdout)).toEqual({ output_version: 1, state: 'no-log' });
  });
});
