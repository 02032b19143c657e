import { describe, expect, it } from 'vitest';
import { MemoryDevice } from '../../../src/device/memory.js';
import { DmError } from '../../../src/errors.js';
import { linear } from '../../../src/targets/linear/index.js';
import { testPromises } from '../battery.js';
import { makeRig } from '../harness.js';

testPromises({ name: 'linear, offset 0', type: linear, args: (device) => `${device} 0`, bytes: 200 * 512 });
testPromises({
  name: 'linear, offset 7, shorter than its device',
  type: linear,
  args: (device) => `${device} 7 1 no_passthrough`,
  length: 150,
  bytes: 200 * 512 + 100,
});

describe('linear', () => {
  const disk = new MemoryDevice(100 * 512 + 100);

  it('takes the sectors that the device has from the offset on', async () => {
    const sizes = async (args: string, length?: number) =>
      (await makeRig(linear, args, { disk }, length === undefined ? {} : { length })).target.size / 512;
    expect(await sizes('disk 0')).toBe(100);
    expect(await sizes('disk 99')).toBe(1);
    expect(await sizes('disk 40', 60)).toBe(60);
  });

  it('moves every request by the offset', async () => {
    const { target } = await makeRig(linear, 'disk 10', { disk });
    target.write(5, new Uint8Array([1, 2, 3]));
    expect([...disk.bytes.subarray(10 * 512 + 4, 10 * 512 + 9)]).toEqual([0, 1, 2, 3, 0]);
    target.discard(6, 1);
    expect([...disk.bytes.subarray(10 * 512 + 4, 10 * 512 + 9)]).toEqual([0, 1, 0, 3, 0]);
  });

  it('lets the kernel do the I/O where it is a whole file', async () => {
    const passthrough = async (args: string, bytes = 51200, length?: number) => {
      const devices = { disk: new MemoryDevice(bytes), '@other': new MemoryDevice(bytes) };
      const { target } = await makeRig(linear, args, devices, length === undefined ? {} : { length });
      return target.passthrough()?.path;
    };
    expect(await passthrough('disk 0')).toBe('disk');
    expect(await passthrough('disk 0 1 no_passthrough')).toBeUndefined();
    expect(await passthrough('disk 1')).toBeUndefined();
    expect(await passthrough('disk 0', 51200, 50)).toBeUndefined();
    expect(await passthrough('disk 0', 51201)).toBeUndefined();
    expect(await passthrough('@other 0')).toBeUndefined();
  });

  it.each([
    ['', 'EINVAL', /linear needs a device and an offset: linear <dev> <offset>/],
    ['disk', 'EINVAL', /linear needs a device and an offset/],
    ['disk 1.5', 'EINVAL', /the offset \(sectors\) must be a decimal number, found `1\.5`/],
    ['disk -1', 'EINVAL', /found `-1`/],
    ['disk 0 x', 'EINVAL', /the number of options must be a decimal number, found `x`/],
    ['disk 0 2 no_passthrough', 'EINVAL', /promises 2 options and gives 1/],
    ['disk 0 1 passthrough', 'EINVAL', /linear does not know `passthrough`/],
    ['disk 0 0 more', 'EINVAL', /linear does not know `more`/],
    ['disk 100', 'EINVAL', /disk has 0 sectors from sector 100 on, the table wants at least 1/],
    ['disk 9007199254740991', 'EINVAL', /disk has 0 sectors from sector 9007199254740991 on/],
    ['other 0', 'ENOENT', /other: no such file/],
  ])('refuses `linear %s`', async (args, code, message) => {
    const error = await makeRig(linear, args, { disk }).catch((caught: unknown) => caught);
    expect(error).toBeInstanceOf(DmError);
    expect(error).toMatchObject({ code, message: expect.stringMatching(message) });
  });

  it('refuses a LENGTH that the device does not have', async () => {
    await expect(makeRig(linear, 'disk 41', { disk }, { length: 60 })).rejects.toThrow(
      'disk has 59 sectors from sector 41 on, the table wants 60',
    );
  });
});
