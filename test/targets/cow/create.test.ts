/** The files of a new layer, and that a failure leaves none. */
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { MemoryDevice } from '../../../src/device/memory.js';
import { NewFile } from '../../../src/device/new-file.js';
import { bitmapLayout } from '../../../src/formats/cow-bitmap.js';
import { inspectBitmap } from '../../../src/targets/cow/bitmap-device.js';
import { bitmapFileBytes, createBitmap, createLayer } from '../../../src/targets/cow/create.js';

let folder: string;

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'dmfuse-create-'));
});

afterEach(() => rmSync(folder, { recursive: true }));

const at = (name: string) => join(folder, name);

describe('createLayer', () => {
  it.each([1, 8, 4096, 258_047, 258_048, 2_097_152, 2 ** 31])('a stack of %i sectors', async (sectors) => {
    await createLayer(at('l'), sectors);
    expect(readdirSync(folder).sort()).toEqual(['l', 'l.bitmap']);
    expect(statSync(at('l'))).toMatchObject({ size: sectors * 512, blocks: 0 });
    const bitmap = statSync(at('l.bitmap'));
    const { minimumBytes } = bitmapLayout(sectors);
    expect(bitmap.size % 4096).toBe(0);
    expect(bitmap.size - minimumBytes).toBeGreaterThanOrEqual(0);
    expect(bitmap.size - minimumBytes).toBeLessThan(4096);
    expect(bitmap.size).toBe(bitmapFileBytes(bitmapLayout(sectors)));
    expect(bitmap.mode & 0o777).toBe(0o600);
    if (sectors > 2 ** 22) return;
    const bytes = readFileSync(at('l.bitmap'));
    const device = new MemoryDevice(bytes);
    expect(inspectBitmap(device, 'l.bitmap', sectors)).toBe('existing');
    expect(bytes.filter((byte) => byte !== 0).length).toBeLessThanOrEqual(14);
  });

  it.each(['l', 'l.bitmap'])('refuses where %s exists, and leaves it as it was', async (name) => {
    writeFileSync(at(name), 'mine');
    await expect(createLayer(at('l'), 100)).rejects.toMatchObject({
      code: 'EEXIST',
      message: `${at(name)}: exists already; take another name, or remove it`,
    });
    expect(readdirSync(folder)).toEqual([name]);
    expect(readFileSync(at(name), 'utf8')).toBe('mine');
  });

  it('where it cannot be made, nothing is left', async () => {
    await expect(createLayer(at('none/l'), 100)).rejects.toMatchObject({
      code: 'ENOENT',
      message: `${at('none/l')}: there is no such folder`,
    });
    expect(readdirSync(folder)).toEqual([]);
  });
});

describe('createBitmap', () => {
  it('where its bits cannot be had, there is none', async () => {
    const stop = new Error('no');
    const fill = () => {
      throw stop;
    };
    await expect(createBitmap(at('l'), 100, fill)).rejects.toBe(stop);
    expect(readdirSync(folder)).toEqual([]);
  });
});

describe('NewFile', () => {
  it('has its name when it is published, and not before', async () => {
    const file = await NewFile.create(at('f'), 5000);
    file.device.write(100, Buffer.from('hello'));
    expect(existsSync(at('f'))).toBe(false);
    file.publish();
    expect(readdirSync(folder)).toEqual(['f']);
    expect(readFileSync(at('f')).subarray(100, 105).toString()).toBe('hello');
    file.drop();
    expect(existsSync(at('f'))).toBe(true);
  });

  it('never replaces a file that came meanwhile', async () => {
    const file = await NewFile.create(at('f'), 5000);
    writeFileSync(at('f'), 'mine');
    expect(() => file.publish()).toThrow(`${at('f')}: exists already`);
    file.drop();
    expect(readdirSync(folder)).toEqual(['f']);
    expect(readFileSync(at('f'), 'utf8')).toBe('mine');
  });
});
