/**
 * `dmfuse stats --listen`: GET /metrics over HTTP. A process of its own that reads the mount anew for each scrape, so the daemon
 * opens no socket. While the mount cannot be read a scrape is 503 and says why; the server stays.
 */
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { DmError, messageOf } from '../../src/errors.js';
import { exitNow } from '../exit-now.js';
import { say } from './output.js';
import { CONTENT_TYPE, prometheusText } from './prometheus.js';
import { readSample } from './sample.js';

/** A daemon that stands still answers nobody; who scrapes gives up about then. */
const SCRAPE_LIMIT_MS = 8000;
const PLAIN = 'text/plain; charset=utf-8';

export interface ListenAddress {
  readonly host: string;
  /** 0: one that is free. */
  readonly port: number;
}

/** Serves until SIGTERM or SIGINT. Throws EADDRINUSE and the like. */
export async function serveMetrics(
  mountPoint: string,
  name: string | undefined,
  { host, port }: ListenAddress,
): Promise<void> {
  const read = shared(async () => await prometheusText(await readSample(mountPoint, name)));
  const server = createServer((request, response) => void answer(request, response, read));
  await new Promise<void>((resolve, reject) => {
    // Not once: later it is about one client, who is not served, and no reason to end.
    server.on('error', (error: NodeJS.ErrnoException) =>
      reject(new DmError('EINVAL', `--listen: ${error.message}`)),
    );
    server.listen({ host, port }, resolve);
  });
  const ended = new Promise<void>((resolve) => {
    for (const signal of ['SIGTERM', 'SIGINT'] as const) process.once(signal, () => resolve());
  });
  const address = server.address() as AddressInfo;
  const shown = address.family === 'IPv6' ? `[${address.address}]` : address.address;
  say(`http://${shown}:${address.port}/metrics`);
  await ended;
  // Not to wait for clients that keep their connection, or for a read of a mount that does not answer.
  exitNow(0);
}

async function answer(
  request: IncomingMessage,
  response: ServerResponse,
  read: () => Promise<string>,
): Promise<void> {
  const send = (code: number, type: string, text: string, headers: Record<string, string> = {}) => {
    response.writeHead(code, { 'content-type': type, 'content-length': Buffer.byteLength(text), ...headers });
    // For HEAD, node sends no body.
    response.end(text);
  };
  if (request.url?.split('?')[0] !== '/metrics') {
    send(404, PLAIN, 'dmfuse: there is only /metrics\n');
  } else if (request.method !== 'GET' && request.method !== 'HEAD') {
    send(405, PLAIN, 'dmfuse: GET or HEAD\n', { allow: 'GET, HEAD' });
  } else {
    try {
      send(200, CONTENT_TYPE, await withinLimit(read()));
    } catch (error) {
      send(503, PLAIN, `dmfuse: ${messageOf(error)}\n`);
    }
  }
}

/** `work`, done once for all who ask while it is being done: however many they are, nothing piles up before a daemon that stands still. */
export function shared<T>(work: () => Promise<T>): () => Promise<T> {
  let running: Promise<T> | undefined;
  return () => {
    running ??= work().finally(() => {
      running = undefined;
    });
    return running;
  };
}

async function withinLimit<T>(work: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const limit = new Promise<never>((_, reject) => {
    const late = new DmError('EIO', `the mount has not answered for ${SCRAPE_LIMIT_MS / 1000} s`);
    timer = setTimeout(() => reject(late), SCRAPE_LIMIT_MS);
  });
  try {
    return await Promise.race([work, limit]);
  } finally {
    clearTimeout(timer);
  }
}
