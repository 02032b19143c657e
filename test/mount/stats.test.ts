/** `dmfuse stats` and `top`: what is counted is what was done, in every form in which it is told. */
import { readdirSync, readFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { shared } from '../../mount/cli/metrics-server.js';
import { parseExposition } from './exposition.js';
import { setFile } from './filter-work.js';
import { type Lab, MAIN, mountTest, type Running, suspend, until } from './harness.js';

async function image(lab: Lab, name = 'disk.img', size = '8M'): Promise<string> {
  await lab.sh(`truncate -s ${size} ${name}`);
  return lab.path(name);
}

/** 12 reads of 4 KiB, 5 writes of 64 KiB, 3 discards, 1 zeroing, 1 error, and 6 flushes: fallocate(1) makes one each time. */
async function useDevice(lab: Lab, device: string): Promise<void> {
  await lab.sh(`
    dd if=${device} of=/dev/null bs=4k count=12 status=none
    dd if=/dev/zero of=${device} bs=64k count=5 conv=notrunc status=none
    sync ${device}; sync ${device}
    for at in 0 1 2; do fallocate -p -o $((at * 8192)) -l 8192 ${device}; done
    fallocate -z -n -o 65536 -l 4096 ${device}
    ! dd if=/dev/zero of=${device} bs=4k seek=1M count=1 conv=notrunc status=none 2>refused`);
}
const DONE = {
  ...{ reads: 12, read_bytes: 49_152, writes: 5, written_bytes: 327_680, flushes: 6 },
  ...{ discards: 3, discarded_bytes: 24_576, zeroes: 1, zeroed_bytes: 4096, errors: 1 },
};
const DONE_OPS = { read: 12, write: 5, flush: 6, discard: 3, zeroes: 1 };

async function exposition(lab: Lab, ...args: string[]) {
  return parseExposition(await lab.dmfuseOk('stats', ...args, '--prometheus'));
}

async function serve(lab: Lab, ...args: string[]): Promise<{ server: Running; url: string }> {
  const server = lab.startDmfuse('stats', ...args);
  await server.prints(/\n/);
  return { server, url: server.stdout.trim() };
}

const SCREEN_ON = '\x1b[?1049h';
const SCREEN_OFF = '\x1b[?1049l';
const CURSOR_OFF = '\x1b[?25l';
const CURSOR_ON = '\x1b[?25h';
const HOME = '\x1b[H';
const WIPE_LINE = '\x1b[K';

/** What top --json prints. */
function frames(text: string): { targets: { name: string; rates?: Record<string, number> }[] }[] {
  return text
    .split('\n')
    .filter(Boolean)
    .map((line) => JSON.parse(line));
}

describe('dmfuse stats', () => {
  mountTest('counts and times every request once, in each of its forms', async (lab) => {
    const { point, create, stats, read } = await lab.mount();
    await create('x', `linear ${await image(lab)} 0 1 no_passthrough`);
    await useDevice(lab, `${point}/x/device`);
    expect(stats('x')).toEqual({ ...DONE, open: 0, in_flight: 0, passed_through: 0 });
    for (const [op, count] of Object.entries(DONE_OPS)) {
      const lines = read('x/latency')
        .split('\n')
        .flatMap((line) => (line.startsWith(`${op} `) ? [line.slice(op.length + 1)] : []));
      expect(lines[0]).toBe(`count ${count}`);
      expect(Number(/^sum_us (\d+)$/.exec(lines[1]!)![1])).toBeGreaterThan(0);
      const inBuckets = lines.slice(2).reduce((sum, line) => sum + Number(line.split(' ')[1]), 0);
      expect([op, inBuckets]).toEqual([op, count]);
    }

    const { value } = await exposition(lab, point, 'x');
    const labels = { mount: point, target: 'x', type: 'linear' };
    for (const [op, count] of Object.entries(DONE_OPS)) {
      expect(value('dmfuse_requests_total', { ...labels, op })).toBe(count);
      expect(value('dmfuse_request_duration_seconds_count', { ...labels, op })).toBe(count);
      const sum = Number(new RegExp(`^${op} sum_us (\\d+)$`, 'm').exec(read('x/latency'))![1]);
      expect(value('dmfuse_request_duration_seconds_sum', { ...labels, op })).toBeCloseTo(sum / 1e6, 9);
    }
    for (const [op, bytes] of [
      ['read', DONE.read_bytes],
      ['write', DONE.written_bytes],
      ['discard', DONE.discarded_bytes],
      ['zeroes', DONE.zeroed_bytes],
    ] as const)
      expect(value('dmfuse_bytes_total', { ...labels, op })).toBe(bytes);
    expect(value('dmfuse_errors_total', labels)).toBe(1);
    expect(value('dmfuse_size_bytes', labels)).toBe(8 * 2 ** 20);
    expect(value('dmfuse_target_up', { target: 'x' })).toBe(1);
    expect(
      value('dmfuse_build_info', { mount: point, version: /version (.*)/.exec(read('.dmfuse'))![1]! }),
    ).toBe(1);

    const { targets } = JSON.parse(await lab.dmfuseOk('stats', point, '--json'));
    expect(targets).toMatchObject([{ name: 'x', type: 'linear', stats: DONE, open: 0, inFlight: 0 }]);
    expect(targets[0].latency.read.count).toBe(12);
    expect(targets[0].latency.write.p99Us).toBeGreaterThanOrEqual(targets[0].latency.write.p50Us);
    const [titles, row, ...more] = (await lab.dmfuseOk('stats', point)).trim().split('\n');
    expect([titles!.split(/\s+/).slice(0, 4), more]).toEqual([['NAME', 'TYPE', 'READS', 'READ'], []]);
    expect(row).toMatch(/^x {5}linear +12 +48 KiB +5 +320 KiB +6 +3 +1 +1 +0 +0 +/);
    expect(await lab.refusal('stats', point, 'y')).toMatch(/^y: there is no target of that name/);
    expect(await lab.refusal('stats', lab.path())).toMatch(/no dmfuse is mounted there/);
  });

  mountTest('tells what is open, passed through, being served, and what has no target', async (lab) => {
    const below = await lab.mount({ name: 'below' });
    await below.create('b', `linear ${await image(lab)} 0 1 no_passthrough`);
    const { point, create, path, stats } = await lab.mount();
    await create('slow', `linear ${below.path('b/device')} 0 1 no_passthrough`);
    await create('fast', `linear ${await image(lab, 'other.img')} 0`);
    await lab.sh(`mkdir ${path('none')}`);
    const holder = lab.start('bash', [
      '-c',
      `exec 3<${path('fast/device')}; echo open; read -u 3 -n 1; sleep 1000`,
    ]);
    await holder.prints(/open/);
    await suspend(below.pid);
    lab.onClose(async () => void process.kill(below.pid, 'SIGCONT'));
    const reader = lab.start('dd', [`if=${path('slow/device')}`, 'of=/dev/null', 'bs=4k', 'count=1']);
    await until(() => stats('slow').in_flight === 1, 'the read to be under way');
    const { value } = await exposition(lab, point);
    expect(value('dmfuse_in_flight', { target: 'slow' })).toBe(1);
    expect(value('dmfuse_requests_total', { target: 'slow', op: 'read' })).toBe(0);
    expect(value('dmfuse_in_flight', { target: 'fast' })).toBe(0);
    expect(value('dmfuse_open', { target: 'fast' })).toBe(1);
    expect(value('dmfuse_target_up', { target: 'none' })).toBe(0);
    // Only where the kernel can.
    const passed = value('dmfuse_passed_through', { target: 'fast' });
    expect(passed).toBe(stats('fast').passed_through);
    const [, , fast, slow, ...none] = (await lab.dmfuseOk('top', point, '--once', '--interval', '0.1'))
      .trimEnd()
      .split('\n');
    if (passed === 1) expect(fast).toMatch(/^fast {2}linear( +-){10} {2}passed through$/);
    expect(slow).toMatch(/^slow {2}linear( +0){5} +1( +-){4}$/);
    expect(none).toEqual([]);
    process.kill(below.pid, 'SIGCONT');
    expect(await reader.ended).toMatchObject({ code: 0 });
    expect(stats('slow')).toMatchObject({ in_flight: 0, reads: 1 });
    holder.kill();
    await holder.ended;
    await lab.dmfuseOk('umount', point);
  });

  mountTest('has the state of each type, and the storage of snapshots', async (lab) => {
    const { point, create, path, read } = await lab.mount({ args: ['-o', 'diff_storage_minimum=2048'] });
    await create('b', `bow ${await image(lab, 'b.img')}`);
    const [meta, copy, source] = await Promise.all(
      ['meta', 'copy', 'source'].map((name) => image(lab, name)),
    );
    await create('c', `clone ${meta} ${copy} ${source} 8 1 no_hydration`);
    await lab.sh(`truncate -s 6M data.img; truncate -s 1M imd.img`);
    await lab.dmfuseOk('csum', 'format', lab.path('data.img'), lab.path('imd.img'));
    await create('s', `csum ${lab.path('data.img')} 0 ${lab.path('imd.img')} 0`);
    await lab.dmfuseOk('cow', 'create', await image(lab, 'base'), lab.path('layer'));
    await create('w', `cow ${lab.path('base')} 0 ${lab.path('layer.bitmap')} ${lab.path('layer')} 0`);
    await lab.sh(`
      dd if=/dev/zero of=${path('w/device')} bs=4k count=3 conv=notrunc status=none
      dd if=/dev/zero of=${path('c/device')} bs=4k count=5 conv=notrunc status=none
      fallocate -p -o 0 -l 1M ${path('b/device')}
      echo blksnap >${path('b/filter')}`);
    await lab.dmfuseOk('snapshot', 'create', point, 'night', '--device', 'b');
    await lab.dmfuseOk('snapshot', 'append', point, 'night', lab.path('diff'), '0', '8192');
    await setFile(path('snapshots/night/take'), '1');
    await lab.sh(
      `dd if=/dev/zero of=${path('b/device')} bs=4k seek=1024 count=1 conv=notrunc,fsync status=none`,
    );

    const { value } = await exposition(lab, point);
    expect(value('dmfuse_bow_state')).toBe(0);
    expect(value('dmfuse_bow_free_bytes')).toBe(Number(read('b/free')));
    expect(value('dmfuse_bow_suspect')).toBe(0);
    expect(value('dmfuse_csum_corrupt_total')).toBe(0);
    expect(value('dmfuse_cow_top_bytes')).toBe(12_288);
    expect(value('dmfuse_clone_region_bytes')).toBe(4096);
    expect(value('dmfuse_clone_regions')).toBe(2048);
    expect(value('dmfuse_clone_hydrated_regions')).toBe(5);
    expect(value('dmfuse_clone_metadata_failed')).toBe(0);
    const snapshot = { mount: point, snapshot: 'night' };
    expect(value('dmfuse_snapshot_storage_bytes', snapshot)).toBe(4 * 2 ** 20);
    const filled = Number(/^filled (\d+)$/m.exec(read('snapshots/night/state'))![1]) * 512;
    expect(filled).toBeGreaterThan(0);
    expect(value('dmfuse_snapshot_filled_bytes', snapshot)).toBe(filled);
    expect(value('dmfuse_snapshot_free_bytes', snapshot)).toBe(4 * 2 ** 20 - filled);
    expect(value('dmfuse_snapshot_image_corrupted', { ...snapshot, target: 'b' })).toBe(0);

    const table = await lab.dmfuseOk('top', point, '--once', '--interval', '0.1');
    for (const line of [
      /^b {5}bow .* state 0, 1020 KiB free; snapshot night taken, 3\.\d MiB of 4\.0 MiB left$/m,
      /^c {5}clone .* 0\.2% hydrated$/m,
      /^s {5}csum .* 0 corrupt$/m,
      /^w {5}cow .* 12 KiB in the top layer$/m,
    ])
      expect(table).toMatch(line);
  });

  mountTest('--output replaces a file as a whole, and leaves nothing else', async (lab) => {
    const { point, create } = await lab.mount();
    await create('x', `linear ${await image(lab)} 0`);
    const folder = lab.makeFolder('textfile');
    await lab.sh(`echo old >${folder}/dmfuse.prom; ln ${folder}/dmfuse.prom ${lab.path('kept')}`);
    expect(await lab.dmfuseOk('stats', point, '--output', `${folder}/dmfuse.prom`)).toBe('');
    expect(readdirSync(folder)).toEqual(['dmfuse.prom']);
    expect(parseExposition(readFileSync(`${folder}/dmfuse.prom`, 'utf8')).value('dmfuse_open')).toBe(0);
    // Who has the old one open reads it to its end.
    expect(readFileSync(lab.path('kept'), 'utf8')).toBe('old\n');
    expect(await lab.refusal('stats', point, '--output', `${folder}/none/x.prom`)).toMatch(
      /there is no such folder$/,
    );
    await lab.sh(`mkdir ${folder}/dir.prom`);
    expect(await lab.refusal('stats', point, '--output', `${folder}/dir.prom`)).toMatch(/is a folder$/);
    expect(readdirSync(folder)).toEqual(['dir.prom', 'dmfuse.prom']);
    // What is no regular file stays what it is, and so does a link.
    await lab.sh('mkfifo pipe; ln -s /dev/full full; echo old >far; ln -s far link');
    const [piped] = await Promise.all([
      lab.sh('cat pipe'),
      lab.dmfuseOk('stats', point, '--output', lab.path('pipe')),
    ]);
    expect(parseExposition(piped).value('dmfuse_open')).toBe(0);
    expect(await lab.refusal('stats', point, '--output', lab.path('full'))).toMatch(
      /no space is left there$/,
    );
    await lab.dmfuseOk('stats', point, '--output', lab.path('link'));
    expect(await lab.sh('stat -c %F pipe full link far')).toBe(
      'fifo\nsymbolic link\nsymbolic link\nregular file\n',
    );
    expect(parseExposition(readFileSync(lab.path('far'), 'utf8')).value('dmfuse_open')).toBe(0);
    for (const args of [['--json'], ['--listen', '0']])
      expect(await lab.dmfuse('stats', point, '--output', 'x', ...args)).toMatchObject({ code: 64 });
  });

  mountTest('--listen reads the mount anew for each scrape, and outlives it', async (lab) => {
    const { point, create, path, umount } = await lab.mount();
    await create('x', `linear ${await image(lab)} 0 1 no_passthrough`);
    const { server, url } = await serve(lab, point, '--listen', '0');
    expect(url).toMatch(/^http:\/\/127\.0\.0\.1:\d+\/metrics$/);
    const scrape = async () => {
      const response = await fetch(url);
      expect(response.headers.get('content-type')).toMatch(/^text\/plain; version=0\.0\.4/);
      return parseExposition(await response.text()).value('dmfuse_requests_total', { op: 'write' });
    };
    expect(await scrape()).toBe(0);
    await lab.sh(`dd if=/dev/zero of=${path('x/device')} bs=4k count=7 conv=notrunc status=none`);
    expect(await scrape()).toBe(7);

    const head = await fetch(url, { method: 'HEAD' });
    expect([head.status, await head.text()]).toEqual([200, '']);
    expect((await fetch(url, { method: 'POST' })).status).toBe(405);
    for (const other of ['/', '/metrics/x', '/../.dmfuse'])
      expect((await fetch(url.replace('/metrics', other))).status).toBe(404);

    await umount();
    const gone = await fetch(url);
    expect([gone.status, await gone.text()]).toEqual([
      503,
      expect.stringMatching(/^dmfuse: .*no dmfuse is mounted there/),
    ]);
    const again = await lab.mount();
    await again.create('x', `linear ${lab.path('disk.img')} 0 1 no_passthrough`);
    expect(await scrape()).toBe(0);
    await again.killDaemon();
    const dead = await fetch(url);
    expect([dead.status, await dead.text()]).toEqual([503, expect.stringMatching(/its daemon is dead/)]);
    server.signal('SIGTERM');
    expect(await server.ended).toMatchObject({ code: 0, stderr: '' });
    await lab.dmfuseOk('umount', point);
  });

  test('--listen: one reading serves all scrapes that come meanwhile, the next one is another', async () => {
    const readings: ((error?: Error) => void)[] = [];
    const read = shared(
      () =>
        new Promise<void>((resolve, reject) => readings.push((error) => (error ? reject(error) : resolve()))),
    );
    const first = Array.from({ length: 1000 }, () => read());
    expect(readings).toHaveLength(1);
    readings[0]!();
    await Promise.all(first);
    const failed = [read(), read()];
    expect(readings).toHaveLength(2);
    readings[1]!(new Error('gone'));
    for (const one of failed) await expect(one).rejects.toThrow('gone');
    void read();
    expect(readings).toHaveLength(3);
  });

  mountTest(
    '--listen ends at once where the daemon stands still; takes IPv6; says who has the port',
    async (lab) => {
      const { point, pid } = await lab.mount();
      const { server, url } = await serve(lab, point, '--listen', '[::1]:0');
      expect(url).toMatch(/^http:\/\/\[::1\]:\d+\/metrics$/);
      expect((await fetch(url)).status).toBe(200);
      const port = new URL(url).port;
      expect(await lab.refusal('stats', point, '--listen', `[::1]:${port}`)).toMatch(
        /--listen: .*EADDRINUSE/,
      );
      await suspend(pid);
      const scrape = fetch(url).then(
        () => 'answered',
        () => 'cut',
      );
      const waits = () => lab.sh(`cat /proc/${server.pid}/task/*/wchan`);
      await until(async () => (await waits()).includes('request_wait_answer'), 'the scrape to wait');
      server.signal('SIGINT');
      expect(await server.ended).toMatchObject({ code: 0, stderr: '' });
      expect(await scrape).toBe('cut');
      process.kill(pid, 'SIGCONT');
    },
  );
});

describe('dmfuse top', () => {
  mountTest('shows what is done in an interval, and targets as they come and go', async (lab) => {
    const { point, create, path } = await lab.mount();
    await create('x', `linear ${await image(lab)} 0 1 no_passthrough`);
    await lab.sh(`dd if=${path('x/device')} of=/dev/null bs=4k status=none`);
    const running = lab.startDmfuse('top', point, '--json', '--interval', '0.2');
    const shows = async (what: string, is: (last: ReturnType<typeof frames>[number]) => boolean) =>
      await until(() => frames(running.stdout.replace(/[^\n]*$/, '')).some(is), what);
    // What was done before is in no rate.
    await running.prints(/"rates"/);
    expect(frames(running.stdout.replace(/[^\n]*$/, ''))[0]!.targets[0]!.rates).toMatchObject({
      readsPerSecond: 0,
      errors: 0,
    });
    await lab.sh(`dd if=${path('x/device')} of=/dev/null bs=4k count=100 status=none`);
    await shows('the reads', ({ targets }) => (targets[0]?.rates?.readsPerSecond ?? 0) > 0);
    const all = frames(running.stdout.replace(/[^\n]*$/, ''));
    const reads = all.map(({ targets }) => {
      const { readsPerSecond = 0, seconds = 0 } = targets[0]!.rates ?? {};
      return readsPerSecond * seconds;
    });
    expect(reads.reduce((sum, count) => sum + count, 0)).toBeCloseTo(100);
    const busy = all.find(({ targets }) => targets[0]!.rates!.readsPerSecond! > 0)!.targets[0]!.rates!;
    expect(busy.readP99Us).toBeGreaterThanOrEqual(busy.readP50Us!);
    expect(busy.meanInFlight).toBeGreaterThan(0);
    await create('y', `linear ${await image(lab, 'other.img')} 0`);
    await shows('the new one', ({ targets }) =>
      targets.some(({ name, rates }) => name === 'y' && rates !== undefined),
    );
    await lab.dmfuseOk('remove', point, 'x');
    await shows('the old one gone', ({ targets }) => targets.map(({ name }) => name).join() === 'y');
    // The same name again is another target.
    await create('x', `linear ${lab.path('disk.img')} 0 1 no_passthrough`);
    await shows('the same name', ({ targets }) => targets.length === 2);
    running.signal('SIGTERM');
    expect(await running.ended).toMatchObject({ code: 0, stderr: '' });
  });

  mountTest('-n: so many tables, one after the other; without a mount it says why', async (lab) => {
    const { point, create } = await lab.mount();
    await create('x', `linear ${await image(lab)} 0 1 no_passthrough`);
    const text = await lab.dmfuseOk('top', point, '-n', '2', '--interval', '0.1');
    expect(text).toMatch(/^(\d\d:\d\d:\d\d {2}\S+\nNAME .*STATE\nx {5}linear .*\n\n?){2}$/);
    expect(text).not.toContain('\x1b');
    // Node warns of what piles up from ten on.
    expect(await lab.dmfuse('top', point, '-n', '11', '--interval', '0.1', '--json')).toMatchObject({
      code: 0,
      stderr: '',
    });
    const running = lab.startDmfuse('top', point, '--interval', '0.1');
    await running.prints(/NAME/);
    // Ten times a second it has control files open, which umount bears, but not each time without end.
    await until(async () => (await lab.dmfuse('umount', point)).code === 0, 'a moment between two samples');
    expect(await running.ended).toMatchObject({ code: 1, stderr: expect.stringMatching(/^dmfuse: .*\n$/) });
    for (const args of [
      ['--interval', '0'],
      ['--interval', 'x'],
      ['-n', '0'],
      ['-n', '2', '--once'],
    ])
      expect(await lab.dmfuse('top', point, ...args)).toMatchObject({ code: 64 });
  });

  mountTest('on a terminal: one screen, which is given back, whatever ends it', async (lab) => {
    const { point, create, pid } = await lab.mount();
    await create('x', `linear ${await image(lab)} 0 1 no_passthrough`);
    await create('y', `bow ${await image(lab, 'y.img')}`);
    for (const end of ['q', '\x03', 'SIGTERM', 'stuck']) {
      const text = await terminal(lab, point, end, pid);
      const [before, screen, after, ...more] = text.replaceAll(SCREEN_OFF, SCREEN_ON).split(SCREEN_ON);
      expect([end, before, after, more]).toEqual([end, '', '', []]);
      expect(text.indexOf(SCREEN_ON)).toBeLessThan(text.indexOf(SCREEN_OFF));
      expect([screen!.startsWith(CURSOR_OFF), screen!.endsWith(CURSOR_ON)]).toEqual([true, true]);
      // From the top, each line cut to 40 columns, the rest wiped.
      const shown = screen!.split(HOME).slice(1);
      const [first, ...lines] = shown[0]!.split('\r\n');
      expect(first).toMatch(/^\d\d:\d\d:\d\d {2}\//);
      expect(lines[0]).toMatch(/^NAME {2}TYPE /);
      expect(lines[1]).toMatch(/^x {5}linear /);
      expect(lines.length).toBe(4);
      for (const line of shown.flatMap((frame) => frame.split('\r\n'))) {
        expect(line.split(WIPE_LINE)[0]!.length).toBeLessThanOrEqual(40);
        expect(line).toContain(WIPE_LINE);
      }
      // What targets tell of themselves does not fit beside the numbers.
      expect(lines[2]).toMatch(/^y {5}bow /);
      expect(lines[3]).toMatch(/^ {2}state 0, 0 B free/);
      // On two rows, the last line says how much is hidden.
      if (end === 'q') expect(shown.at(-1)).toMatch(/^\d\d:\d\d.*\s+… 4 more/);
    }
  });
});

/**
 * What top writes to a terminal of 40 by 5 that, after the first frame, becomes one of 2 rows where it is to end with `q`. It must
 * end with 0, in the terminal's old mode.
 */
async function terminal(lab: Lab, point: string, end: string, pid: number): Promise<string> {
  if (end === 'stuck') {
    lab.onClose(async () => void process.kill(pid, 'SIGCONT'));
  }
  const script = `
import fcntl, os, pty, select, signal, struct, sys, termios, time
main, node, point, end, daemon = sys.argv[1:]
size = lambda rows: fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack('HHHH', rows, 40, 0, 0))
master, slave = pty.openpty()
size(5)
mode = termios.tcgetattr(slave)
child = os.fork()
if child == 0:
    os.setsid()
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    for fd in (0, 1, 2): os.dup2(slave, fd)
    os.execv(node, [node, main, 'top', point, '--interval', '0.2'])
text = b''
def read(until):
    global text
    while not until():
        if select.select([master], [], [], 0.1)[0]: text += os.read(master, 65536)
read(lambda: text.count(b'\\x1b[J') >= 1)
if end == 'stuck':
    os.kill(int(daemon), signal.SIGSTOP)
    time.sleep(0.5)
    os.write(master, b'q')
elif end == 'SIGTERM':
    os.kill(child, signal.SIGTERM)
else:
    if end == 'q':
        size(2)
        read(lambda: b' more' in text)
    os.write(master, end.encode())
done = []
def ended():
    found, how = os.waitpid(child, os.WNOHANG)
    if found: done.append(how)
    return bool(found)
read(ended)
while select.select([master], [], [], 0.1)[0]: text += os.read(master, 65536)
if end == 'stuck': os.kill(int(daemon), signal.SIGCONT)
assert done == [0], done
assert termios.tcgetattr(slave) == mode, 'mode'
sys.stdout.buffer.write(text)
`;
  return await lab.python(script, MAIN, process.execPath, point, end, String(pid));
}
