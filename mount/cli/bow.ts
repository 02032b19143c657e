/** `dmfuse bow restore`, `check` and `dump`: the log of an image that is not attached. */
import type { WorkDone } from '../../src/progress.js';
import {
  describeFinding,
  dumpSteps,
  inspectSteps,
  type LogDump,
  restoreSteps,
  type UndoProgress,
} from '../../src/targets/bow/undo.js';
import { withImage } from './images.js';
import { EXIT_DAMAGED, EXIT_NOTHING_THERE, printJson, say } from './output.js';
import { inSteps, type ProgressFlags, withProgress } from './progress.js';

/** Runs at every boot, so no log is a good end. */
export async function restoreImage(path: string, flags: ProgressFlags): Promise<void> {
  await withImage(path, 'write', async (device) => {
    const result = await withProgress('restore', { ...flags, interruptible: false }, (update) =>
      inSteps(restoreSteps(device), (done) => update(ofBothPasses(done))),
    );
    if (flags.json) {
      printJson(result);
    } else if (result.state === 'no-log') {
      say('no log');
    } else {
      const logs = `${result.sequences} log block${result.sequences === 1 ? '' : 's'}`;
      say(`restored: ${result.entries} entries, ${result.bytes} bytes, ${logs}`);
    }
  });
}

export async function checkImage(path: string, flags: ProgressFlags): Promise<void> {
  await withImage(path, 'read', async (device) => {
    const report = await withProgress('check', { ...flags, interruptible: false }, (update) =>
      inSteps(inspectSteps(device), update),
    );
    const findings = report?.findings.map(describeFinding) ?? [];
    if (!report) process.exitCode = EXIT_NOTHING_THERE;
    else if (findings.length > 0) process.exitCode = EXIT_DAMAGED;

    if (flags.json) {
      const state = !report ? 'no-log' : findings.length > 0 ? 'damaged' : 'sound';
      printJson({ state, ...report, ...(report ? { findings } : {}) });
    } else if (!report) {
      say('no log: a restore would change nothing');
    } else if (findings.length > 0) {
      say(`damaged: a restore would refuse and change nothing\n${findings.join('\n')}`);
    } else {
      const how = report.restoring ? 'finish the restore that has begun' : 'roll back';
      say(
        `sound: a restore would ${how}: ${report.entries} entries, ${report.bytes} bytes, ${report.logs} log blocks ` +
          `of ${report.blockSize} bytes`,
      );
    }
  });
}

export async function dumpImage(path: string, flags: ProgressFlags): Promise<void> {
  await withImage(path, 'read', async (device) => {
    const dump = await withProgress('dump', { ...flags, interruptible: false }, (update) =>
      inSteps(dumpSteps(device), update),
    );
    if (!dump) process.exitCode = EXIT_NOTHING_THERE;
    else if (dump.findings.length > 0) process.exitCode = EXIT_DAMAGED;

    if (flags.json) printJson({ logs: [], ...dump, findings: dump?.findings.map(describeFinding) ?? [] });
    else say(dump ? dumpText(dump) : 'no log');
  });
}

function dumpText({ logs, findings }: LogDump): string {
  const lines: string[] = [];
  for (const log of logs) {
    lines.push(
      `log ${log.sequence} at sector ${log.sector}: magic ${log.magic}, version ${log.headerVersion}, ` +
        `header ${log.headerSize} bytes, block ${log.blockSize} bytes, ${log.count} entries, sector0 at ${log.sector0}`,
    );
    log.entries.forEach(({ sourceSector, destSector, sizeBytes, checksum }, i) => {
      lines.push(`  ${i}: source ${sourceSector} dest ${destSector} size ${sizeBytes} checksum ${checksum}`);
    });
  }
  return [...lines, ...findings.map((finding) => `damaged: ${describeFinding(finding)}`)].join('\n');
}

/** A restore reads all backups to check them, and then again to put them back. */
function ofBothPasses({ phase, bytes, bytesTotal }: UndoProgress): WorkDone {
  return { bytes: phase === 'restore' ? bytesTotal + bytes : bytes, bytesTotal: 2 * bytesTotal };
}
