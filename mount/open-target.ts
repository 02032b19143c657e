import type { BlockDevice } from '../src/device/block-device.js';
import { FileDevice } from '../src/device/file.js';
import { DmError } from '../src/errors.js';
import { targetType } from '../src/targets/index.js';
import type { Backing, OpenContext, Target } from '../src/targets/target.js';

/** The device behind a backing as the calling thread sees it; `targetById` knows that thread's other targets. */
export function openDevice(backing: Backing, targetById: (id: number) => Target | undefined): BlockDevice {
  if (backing.kind === 'file') return new FileDevice(backing);
  const target = targetById(backing.id);
  if (target) return target;
  throw new DmError('ENXIO', `${backing.path}: the target is gone`);
}

/** The calling thread's own view of a live target. */
export function openTarget(
  live: { readonly typeName: string; readonly descriptor: unknown },
  targetById: (id: number) => Target | undefined,
  raise: OpenContext['raise'],
): Target {
  return targetType(live.typeName).open(live.descriptor, {
    device: (backing) => openDevice(backing, targetById),
    raise,
  });
}
