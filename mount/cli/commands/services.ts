/** `dmfuse install-services`. */
import type { Command } from 'commander';

export function servicesCommands(dmfuse: Command): void {
  dmfuse
    .command('install-services')
    .description('put mount.dmfuse for /etc/fstab and dmfuse@.service for systemd where they are looked for')
    .option('--root <DIR>', 'a root directory other than /', '/')
    .option('--remove', 'take them away', false)
    .action(async (options) => (await import('../services.js')).installServices(options));
}
