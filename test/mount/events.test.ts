import { describe, expect } from 'vitest';
import { type Lab, type Mount, mountTest } from './harness.js';

/** Waits in poll(2) for an event, says so, and prints what it then can read. */
const POLL = `
import os, select, sys
fd = os.open(sys.argv[1], os.O_RDONLY | os.O_NONBLOCK)
poll = select.poll()
poll.register(fd, select.POLLIN)
print('before', poll.poll(0), flush=True)
try:
    os.read(fd, 1)
except BlockingIOError:
    print('EAGAIN', flush=True)
for _ in range(2):
    assert poll.poll() == [(fd, select.POLLIN)]
    print(os.read(fd, 65536).decode(), end='', flush=True)
    print('after', poll.poll(0), flush=True)
`;

/** Raises an event: a refused write of \`discard\` that names \`word\`. */
async function raise(lab: Lab, { path }: Mount, word: string): Promise<void> {
  await lab.shell(`echo ${word} >${path('x/discard')}`);
}

async function mountWithTarget(lab: Lab): Promise<Mount> {
  const mount = await lab.mount();
  await lab.sh('truncate -s 4M disk.img');
  await mount.create('x', `linear ${lab.path('disk.img')} 0 1 no_passthrough`);
  return mount;
}

const found = (word: string) =>
  new RegExp(`^refused file=discard .*found \`${word}\`.* monotonic_ns=\\d+$`, 'm');

describe('the events of a target', () => {
  mountTest('a read waits, and returns at the next event', async (lab) => {
    const mount = await mountWithTarget(lab);
    const reader = lab.start('cat', [mount.path('x/events')]);
    await raise(lab, mount, 'one');
    await reader.prints(found('one'));
    expect(reader.isRunning).toBe(true);
    await raise(lab, mount, 'two');
    await reader.prints(found('two'));
    expect(reader.stdout.trim().split('\n')).toHaveLength(2);
  });

  mountTest('O_NONBLOCK: EAGAIN where a read would wait', async (lab) => {
    const mount = await mountWithTarget(lab);
    const attempt = `dd if=${mount.path('x/events')} iflag=nonblock bs=64K status=none`;
    expect(await lab.shell(attempt)).toMatchObject({
      code: 1,
      stdout: '',
      stderr: expect.stringContaining('Resource temporarily unavailable'),
    });
    await raise(lab, mount, 'one');
    expect((await lab.shell(attempt)).stdout).toMatch(found('one'));
  });

  mountTest('poll tells when there is something to read, again and again', async (lab) => {
    const mount = await mountWithTarget(lab);
    const poller = lab.start('python3', ['-c', POLL, mount.path('x/events')]);
    await poller.prints(/^before \[\]\nEAGAIN$/m);
    await raise(lab, mount, 'one');
    await poller.prints(/`one`.*\nafter \[\]$/m);
    await raise(lab, mount, 'two');
    expect(await poller.ended).toMatchObject({
      code: 0,
      stdout: expect.stringMatching(/`two`.*\nafter \[\]$/m),
    });
  });

  mountTest('every reader sees all of them, a late one the old ones too', async (lab) => {
    const mount = await mountWithTarget(lab);
    const readers = [1, 2].map(() => lab.start('cat', [mount.path('x/events')]));
    const words = ['one', 'two', 'three'];
    for (const word of words) await raise(lab, mount, word);
    readers.push(lab.start('cat', [mount.path('x/events')]));
    for (const reader of readers) {
      await reader.prints(found('three'));
      expect(reader.stdout.match(/(?<=found `)\w+/g)).toEqual(words);
    }
    expect(new Set(readers.map(({ stdout }) => stdout)).size).toBe(1);
  });

  mountTest('small reads lose nothing: a shell`s `read` takes a byte at a time', async (lab) => {
    const mount = await mountWithTarget(lab);
    const reader = lab.start('bash', [
      '-c',
      `while read -r line; do echo "$line"; done <${mount.path('x/events')}`,
    ]);
    for (const word of ['one', 'two']) await raise(lab, mount, word);
    await reader.prints(found('two'));
    expect(reader.stdout.trim().split('\n')).toEqual(await mount.events('x'));
    const small = await lab.shell(`dd if=${mount.path('x/events')} bs=7 iflag=nonblock status=none`);
    expect(small.stdout).toBe(reader.stdout);
  });

  mountTest('who falls behind is told how much is lost', async (lab) => {
    const mount = await mountWithTarget(lab);
    await lab.shell(`for i in $(seq 1500); do echo line-$i >${mount.path('x/discard')}; done 2>/dev/null`);
    const lines = await mount.events('x');
    expect(lines[0]).toBe('lost count=476');
    expect(lines[1]).toMatch(found('line-477'));
    expect(lines).toHaveLength(1 + 1024);
    expect(lines.at(-1)).toMatch(found('line-1500'));
  });

  for (const signal of ['SIGINT', 'SIGKILL'] as const) {
    mountTest(`a reader that waits ends with ${signal}, and the daemon goes on`, async (lab) => {
      const mount = await mountWithTarget(lab);
      const reader = lab.start('cat', [mount.path('x/events')]);
      await raise(lab, mount, 'one');
      await reader.prints(found('one'));
      reader.signal(signal);
      expect(await reader.ended).toMatchObject({ signal });
      await raise(lab, mount, 'two');
      expect(await mount.events('x')).toHaveLength(2);
      await mount.umount();
    });
  }

  mountTest('readers that wait do not keep a target from going: they see its end', async (lab) => {
    const mount = await mountWithTarget(lab);
    const reader = lab.start('cat', [mount.path('x/events')]);
    const poller = lab.start('python3', [
      '-c',
      `import os, select, sys
fd = os.open(sys.argv[1], os.O_RDONLY | os.O_NONBLOCK)
poll = select.poll()
poll.register(fd, select.POLLIN)
os.read(fd, 65536)
print('waits', flush=True)
assert poll.poll()
assert os.read(fd, 1) == b''`,
      mount.path('x/events'),
    ]);
    await raise(lab, mount, 'one');
    await reader.prints(found('one'));
    await poller.prints(/waits/).catch(() => {});
    await lab.sh(`rmdir ${mount.path('x')}`);
    expect(await reader.ended).toMatchObject({ code: 0 });
    await poller.ended;
  });

  mountTest('a hundred readers that wait hold up neither I/O nor each other', async (lab) => {
    const mount = await lab.mount({ args: ['--lanes', '1'] });
    await lab.sh('truncate -s 4M disk.img');
    await mount.create('x', `linear ${lab.path('disk.img')} 0 1 no_passthrough`);
    const readers = lab.start('bash', [
      '-c',
      `for i in $(seq 100); do head -n 1 ${mount.path('x/events')} & done; wait; echo all`,
    ]);
    await lab.sh(`cd ${mount.path('x')}
      for i in $(seq 20); do
        dd if=/dev/zero of=device bs=64K count=16 oflag=direct conv=notrunc status=none
        cat status stats >${lab.path('out')}
      done`);
    expect(readers.isRunning).toBe(true);
    await raise(lab, mount, 'one');
    await readers.prints(/^all$/m);
    expect(readers.stdout.match(/`one`/g)).toHaveLength(100);
  });
});
