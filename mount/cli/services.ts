/**
 * `dmfuse install-services`: what makes mounts at boot, for /etc/fstab and for systemd.
 *
 * Both are called with no PATH that could be relied on, so they name this Node and this dmfuse by their absolute paths. Whoever
 * moves either installs anew.
 */
import { existsSync, mkdirSync, readFileSync, unlinkSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { DmError } from '../../src/errors.js';
import { explain } from './control.js';
import { say } from './output.js';

/** By it a file is known as one of these. */
const MARK = '# Written by `dmfuse install-services`';

interface ServiceFile {
  /** Below the root directory. */
  readonly path: string;
  readonly mode: number;
  text(node: string): string;
}

const FILES: readonly ServiceFile[] = [
  { path: 'sbin/mount.dmfuse', mode: 0o755, text: helperText },
  { path: 'etc/systemd/system/dmfuse@.service', mode: 0o644, text: unitText },
];

/** Throws EEXIST for a file that somebody else has put there, before anything is changed, and as open(2). */
export function installServices({ root, remove }: { root: string; remove: boolean }): void {
  const files = FILES.map((file) => ({ ...file, at: join(root, file.path) }));
  for (const { at } of files) refuseForeign(at);
  for (const file of files) {
    try {
      if (remove) takeAway(file.at);
      else write(file);
    } catch (error) {
      throw explain(error, file.at, {
        EACCES: 'permission denied: run it as root, or have it written below another directory with --root',
      });
    }
  }
}

function takeAway(at: string): void {
  if (!existsSync(at)) return;
  unlinkSync(at);
  say(`removed ${at}`);
}

function write({ at, mode, text }: ServiceFile & { at: string }): void {
  mkdirSync(dirname(at), { recursive: true });
  writeFileSync(at, text(process.execPath), { mode });
  say(`wrote ${at}`);
}

function refuseForeign(path: string): void {
  if (!existsSync(path) || readFileSync(path, 'utf8').includes(MARK)) return;
  throw new DmError('EEXIST', `${path}: not written by dmfuse, so it is left alone; move it away first`);
}

function helperText(node: string): string {
  const quote = (path: string) => `'${path.replaceAll("'", `'\\''`)}'`;
  return `#!/bin/sh
${MARK}; mount(8) calls it for the type dmfuse.
exec ${quote(node)} ${quote(programPath('mount-dmfuse.js'))} "$@"
`;
}

function unitText(node: string): string {
  const quote = (path: string) =>
    `"${path.replace(/["\\]/g, '\\$&').replaceAll('%', '%%').replaceAll('$', '$$$$')}"`;
  return `${MARK}; \`systemctl edit dmfuse@NAME\` changes one instance.
# dmfuse@NAME serves what /etc/dmfuse/NAME.tab describes, at /run/dmfuse/NAME.
[Unit]
Description=dmfuse: the block devices of /etc/dmfuse/%i.tab
Documentation=man:dmfuse(8)
RequiresMountsFor=/etc/dmfuse/%i.tab /var/lib/dmfuse
Wants=modprobe@fuse.service
After=modprobe@fuse.service local-fs.target

[Service]
# Ready when the mount answers and all targets are made, which may have much to recover first.
Type=notify
TimeoutStartSec=10min
# More options of \`dmfuse mount\`, e.g. --allow-other
Environment=OPTIONS=
# What a daemon that was killed has left there cannot be entered, but stays a directory: not RuntimeDirectory=.
ExecStartPre=-/bin/mkdir -p /run/dmfuse/%i
ExecStart=${quote(node)} ${quote(programPath('main.js'))} mount -f --replace --tab /etc/dmfuse/%i.tab --state-dir /var/lib/dmfuse/%i $OPTIONS /run/dmfuse/%i
ExecStopPost=-/bin/rmdir /run/dmfuse/%i
StateDirectory=dmfuse/%i
# SIGTERM flushes and unmounts. A device that is still in use then is served until its last close.
KillMode=mixed
TimeoutStopSec=5min
# What used the devices of a daemon that is dead is cut off from them for good; to begin anew is for whoever repairs that.
Restart=no
OOMScoreAdjust=-900
LimitMEMLOCK=infinity
NoNewPrivileges=yes
CapabilityBoundingSet=CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_IPC_LOCK CAP_SYS_ADMIN CAP_SYS_RESOURCE
# Nothing that has a mount namespace of its own (ProtectSystem=, PrivateTmp=, …): nobody else would see the mount.

[Install]
WantedBy=multi-user.target
`;
}

function programPath(name: string): string {
  return fileURLToPath(new URL(`./${name}`, import.meta.url));
}
