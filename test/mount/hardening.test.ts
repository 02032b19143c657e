/** What the daemon has given up and what keeps it alive under pressure, as the kernel sees it, for every one of its threads. */
import {
  existsSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { describe, expect, test } from 'vitest';
import { writeControl } from '../../mount/cli/control.js';
import { printable } from '../../mount/cli/output.js';
import { PidFile } from '../../mount/cli/pid-file.js';
import { stats } from '../../mount/cli/stats.js';
import { SavedFilters } from '../../mount/saved-filters.js';
import { type Lab, MAIN, mountTest, until } from './harness.js';

/** CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_IPC_LOCK, CAP_SYS_ADMIN, CAP_SYS_RESOURCE. */
const KEPT = [1, 2, 14, 21, 24].reduce((bits, capability) => bits | (1n << BigInt(capability)), 0n);
const CAP_SYS_RESOURCE = 1n << 24n;
// <linux/sched.h>: what PR_SET_IO_FLUSHER sets, in the field `flags` of /proc/PID/stat.
const PF_MEMALLOC_NOIO = 0x00080000;
const PF_LOCAL_THROTTLE = 0x00100000;
/** Of our own, by what is in /proc/self/status. */
const OURS = capabilities('/proc/self', 'CapBnd');

function field(folder: string, name: string): string {
  return new RegExp(`^${name}:\\s+(.*)$`, 'm').exec(readFileSync(`${folder}/status`, 'utf8'))![1]!;
}

function capabilities(folder: string, set: string): bigint {
  return BigInt(`0x${field(folder, set)}`);
}

function threads(pid: number): string[] {
  return readdirSync(`/proc/${pid}/task`).map((thread) => `/proc/${pid}/task/${thread}`);
}

function descriptors(pid: number): string[] {
  return readdirSync(`/proc/${pid}/fd`).map((fd) => readlinkSync(`/proc/${pid}/fd/${fd}`));
}

async function mountedBehind(lab: Lab, redirections: string): Promise<number> {
  const point = lab.makeFolder('mnt');
  await lab.sh(`exec ${redirections}; ${process.execPath} ${MAIN} mount ${point} --lanes 2`);
  return lab.daemons()[0]!;
}

mountTest(
  'every thread has no new privileges and few capabilities, and nothing of it is others` to read',
  async (lab) => {
    const { pid, create } = await lab.mount();
    await lab.sh('truncate -s 1M source; truncate -s 1M copy; truncate -s 1M meta');
    // With it come threads that work in the background.
    await create('c', `clone ${lab.path('meta')} ${lab.path('copy')} ${lab.path('source')} 8`);
    expect(threads(pid).length).toBeGreaterThan(5);
    for (const thread of threads(pid)) {
      expect(field(thread, 'NoNewPrivs')).toBe('1');
      for (const set of ['CapBnd', 'CapPrm', 'CapEff']) expect(capabilities(thread, set)).toBe(OURS & KEPT);
      expect(capabilities(thread, 'CapInh')).toBe(0n);
    }
    expect(field(`/proc/${pid}`, 'Umask')).toBe('0077');
    expect(readlinkSync(`/proc/${pid}/cwd`)).toBe('/');
    const limits = readFileSync(`/proc/${pid}/limits`, 'utf8');
    expect(limits).toMatch(/^Max core file size +0 /m);
    expect(limits).toMatch(/^Max open files +(\d+) +\1 /m);
  },
);

mountTest('in the foreground too, for what touches I/O', async (lab) => {
  const point = lab.makeFolder('mnt');
  const running = lab.startDmfuse('mount', point, '-f', '--lanes', '2');
  await lab.sh(`until [ -e ${point}/.dmfuse ]; do sleep 0.05; done`);
  expect(field(`/proc/${running.pid}`, 'NoNewPrivs')).toBe('1');
  expect(capabilities(`/proc/${running.pid}`, 'CapEff')).toBe(OURS & KEPT);
  // It can still be mounted, unmounted and opened.
  await lab.dmfuseOk('umount', point);
  expect((await running.ended).code).toBe(0);
});

mountTest('SIGUSR1, which asks commands how far they are, opens no debugger', async (lab) => {
  const point = lab.makeFolder('mnt');
  const running = lab.startDmfuse('mount', point, '-f', '--lanes', '2');
  await until(() => existsSync(`${point}/.dmfuse`), 'the mount');
  running.signal('SIGUSR1');
  await lab.dmfuseOk('umount', point);
  const { code, stderr } = await running.ended;
  expect(code).toBe(0);
  expect(stderr).not.toMatch(/debugger/i);
});

mountTest('descriptors that a shell has left open stay with the shell, behind gaps too', async (lab) => {
  await lab.sh('echo secret >secret');
  const pid = await mountedBehind(
    lab,
    `3<${lab.path('secret')} 17<${lab.path('secret')} 200<${lab.path('secret')}`,
  );
  expect(descriptors(pid).filter((path) => path.includes('secret'))).toEqual([]);
  expect(descriptors(pid).filter((path) => path === '/dev/fuse')).toHaveLength(1);
});

/** Threads of a daemon that are no I/O flushers. */
function waiting(pid: number): string[] {
  const wanted = PF_MEMALLOC_NOIO | PF_LOCAL_THROTTLE;
  return threads(pid).filter((thread) => {
    // Behind the name, which may hold blanks: state, ppid, pgrp, session, tty, tpgid, flags.
    const flags = Number(readFileSync(`${thread}/stat`, 'utf8').split(') ').at(-1)!.split(' ')[6]);
    return (flags & wanted) !== wanted;
  });
}

const mayFlush = (OURS & CAP_SYS_RESOURCE) !== 0n;

test.runIf(!mayFlush)('without CAP_SYS_RESOURCE (as here) nothing of the next test is to be had', () => {});

if (mayFlush) {
  mountTest('no thread waits for write-back: no lane, no attendant, none of V8', async (lab) => {
    const mount = await lab.mount({ args: ['--lanes', '4'] });
    await lab.sh('truncate -s 1M source; truncate -s 1M copy; truncate -s 1M meta');
    // With it come one that commits and one that copies.
    await mount.create('c', `clone ${lab.path('meta')} ${lab.path('copy')} ${lab.path('source')} 8`);
    expect(threads(mount.pid).length).toBeGreaterThan(1 + 4 + 2);
    expect(waiting(mount.pid)).toEqual([]);
    expect(readFileSync(`/proc/${mount.pid}/oom_score_adj`, 'utf8')).toBe('-900\n');
  });

  mountTest('in the foreground too: the same process, words and output', async (lab) => {
    const point = lab.makeFolder('mnt');
    const running = lab.startDmfuse('mount', point, '-f', '--lanes', '2', '--source', "a b'c");
    await lab.sh(`until [ -e ${point}/.dmfuse ]; do sleep 0.05; done`);
    expect(await lab.sh(`cat ${point}/.dmfuse`)).toContain(`pid ${running.pid}\n`);
    expect(await lab.sh('cat /proc/self/mountinfo')).toContain(" a\\040b'c ");
    for (const fd of [1, 2]) expect(readlinkSync(`/proc/${running.pid}/fd/${fd}`)).not.toBe('/dev/null');
    expect(waiting(running.pid)).toEqual([]);
    await lab.dmfuseOk('umount', point);
    expect((await running.ended).code).toBe(0);
  });
} else {
  mountTest('without CAP_SYS_RESOURCE it says that pressure is a danger', async (lab) => {
    const point = lab.makeFolder('mnt');
    const running = lab.startDmfuse('mount', point, '-f', '--lanes', '1');
    await lab.sh(`until [ -e ${point}/.dmfuse ]; do sleep 0.05; done`);
    expect(running.stderr).toMatch(/no CAP_SYS_RESOURCE here/);
    await lab.dmfuseOk('umount', point);
  });
}

mountTest('what is in memory of the program stays there, and only that is locked', async (lab) => {
  const { pid } = await lab.mount();
  if ((OURS & (1n << 14n)) === 0n) return;
  const kibibytes = Number.parseInt(field(`/proc/${pid}`, 'VmLck'), 10);
  expect(kibibytes).toBeGreaterThan(20 << 10);
  expect(kibibytes).toBeLessThan(400 << 10);
});

describe('in a folder where others may write', () => {
  /** A file, the link to it that somebody has put at `name`, and what shows that it is as it was. */
  function trap(lab: Lab, name: string) {
    const victim = lab.path('victim');
    writeFileSync(victim, 'precious\n', { mode: 0o600 });
    symlinkSync(victim, lab.path(name));
    return {
      expectUntouched: () => {
        expect(readFileSync(victim, 'utf8')).toBe('precious\n');
        expect(statSync(victim).mode & 0o777).toBe(0o600);
      },
    };
  }

  mountTest('a pid file is not written through a link, and a pipe is none', async (lab) => {
    const { expectUntouched } = trap(lab, `dm.pid.${process.pid}`);
    const file = new PidFile(lab.path('dm.pid'), lab.path('mnt'));
    file.publish();
    expect(readFileSync(lab.path('dm.pid'), 'utf8')).toBe(`${process.pid}\n`);
    expectUntouched();
    file.remove();
    expect(await lab.sh('mkfifo pipe; ls')).toBe('pipe\nvictim\n');
    expect(() => new PidFile(lab.path('pipe'), lab.path('mnt'))).toThrow(
      /pipe: holds something else than a process id/,
    );
  });

  mountTest('numbers for Prometheus are not written through a link', async (lab) => {
    const { point } = await lab.mount({ args: ['--lanes', '1'] });
    const { expectUntouched } = trap(lab, `.dm.prom.${process.pid}.new`);
    await stats(point, undefined, { json: false, prometheus: true, output: lab.path('dm.prom') });
    expect(readFileSync(lab.path('dm.prom'), 'utf8')).toContain('dmfuse_build_info');
    expectUntouched();
  });

  mountTest('the state of a filter is not saved through a link', async (lab) => {
    const { expectUntouched } = trap(lab, 'a.blksnap.new');
    const saved = new SavedFilters(lab.folder);
    await saved.save('a', 'blksnap', Buffer.from('state'));
    expect(await saved.take('a', 'blksnap')).toEqual(Buffer.from('state'));
    expectUntouched();
  });

  mountTest(
    'a control file that is a link, as a mount of somebody else may have it, is not written',
    async (lab) => {
      const { expectUntouched } = trap(lab, 'suspended');
      await expect(writeControl(lab.folder, 'suspended', '1')).rejects.toThrow(/suspended: ELOOP/);
      expectUntouched();
    },
  );
});

mountTest('what others call their processes and files does nothing to a terminal', async (lab) => {
  const { point, umount } = await lab.mount({ args: ['--lanes', '1'] });
  const script = `
import signal, sys
open("/proc/self/comm", "w").write("\\x1b[2Jevil")
with open(sys.argv[1]): print("open", flush=True); signal.pause()`;
  const evil = lab.start('python3', ['-c', script, `${point}/snapshots/params/chunk_minimum_shift`]);
  await evil.prints(/^open$/m);
  const { stderr } = await lab.dmfuse('umount', point);
  expect(stderr).toContain('(?[2Jevil)');
  evil.kill();
  await evil.ended;
  await umount();
  expect(printable('a\x1b[31m\tb\x9bc\nd é')).toBe('a?[31m?b?c\nd é');
});
