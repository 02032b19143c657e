/** The mount of an ordinary user, through fusermount3. */
import { expect } from 'vitest';
import { type Lab, mountTest, until } from './harness.js';
import { REPOSITORY, runAs } from './users.js';

const asNobody = (lab: Lab, script: string) => runAs(lab, 'nobody', script);

mountTest('mounts, creates, reads, writes, unmounts', async (lab) => {
  const { version } = JSON.parse(await lab.sh(`cat ${REPOSITORY}/package.json`));
  expect(
    await asNobody(
      lab,
      `dmfuse mount mnt
      cat mnt/.dmfuse | grep version
      dmfuse create mnt x "linear $PWD/disk.img 0"
      stat -c '%n %a %U' mnt mnt/x mnt/x/device mnt/x/status
      cat mnt/x/status
      head -c 1M /dev/urandom >data
      dd if=data of=mnt/x/device bs=100000 seek=7 conv=notrunc status=none
      cmp -n 1M data mnt/x/device 0 700000
      cmp -n 1M data disk.img 0 700000
      dmfuse ls mnt
      pid=$(daemon)
      dmfuse umount mnt
      ! mounted
      gone $pid`,
    ),
  ).toBe(
    [
      `version ${version}`,
      'mnt 700 nobody',
      'mnt/x 700 nobody',
      'mnt/x/device 600 nobody',
      'mnt/x/status 400 nobody',
      '0 8192 linear',
      'x  linear  8192 sectors\n',
    ].join('\n'),
  );
});

mountTest('takes a checkpoint and rolls back', async (lab) => {
  await asNobody(
    lab,
    `cp disk.img original
    dmfuse mount mnt --create "sys bow $PWD/disk.img"
    echo '4096 4096' >mnt/sys/discard
    echo 1 >mnt/sys/state
    dd if=/dev/zero of=mnt/sys/device bs=64K count=8 conv=notrunc status=none
    ! cmp -s -n 2M mnt/sys/device original
    dmfuse umount mnt
    refused 'dmfuse bow restore' dmfuse mount mnt --create "sys bow $PWD/disk.img"
    ! mounted
    dmfuse bow restore disk.img
    cmp -n 2M disk.img original`,
  );
});

mountTest('fusermount3 -u, SIGTERM and kill -9 end it as they do for root', async (lab) => {
  await asNobody(
    lab,
    `dmfuse mount mnt
    pid=$(daemon)
    fusermount3 -u mnt
    gone $pid

    "\${program[@]}" mount -f mnt --create "x linear $PWD/disk.img 0" & pid=$!
    until [[ -e mnt/x/device ]]; do sleep 0.05; done
    echo written | dd of=mnt/x/device conv=notrunc status=none
    kill $pid
    wait $pid || { echo "SIGTERM: exit $?"; exit 2; }
    ! mounted
    [[ $(head -n 1 disk.img) == written ]] || { echo 'not written'; exit 3; }

    # Open: detached, and served until it is closed.
    "\${program[@]}" mount -f mnt --create "x linear $PWD/disk.img 0" 2>log & pid=$!
    until [[ -e mnt/x/device ]]; do sleep 0.05; done
    exec 3<mnt/x/device
    refused 'mnt/x/device by process' dmfuse umount mnt
    kill $pid
    while mounted; do sleep 0.05; done
    [[ $(head -n 1 <&3) == written ]] || { echo 'not served'; cat log; exit 4; }
    exec 3<&-
    wait $pid || { echo "detached: exit $?"; cat log; exit 5; }
    grep detached log || { echo 'says nothing'; cat log; exit 6; }

    dmfuse mount mnt
    pid=$(daemon)
    kill -9 $pid
    gone $pid
    refused 'its daemon is dead' dmfuse ls mnt
    refused 'dmfuse mount --replace mnt' dmfuse mount mnt
    dmfuse mount --replace mnt
    pid=$(daemon)
    kill -9 $pid
    gone $pid
    dmfuse umount mnt
    ! mounted`,
  );
});

mountTest('a mount that is refused says why, and leaves nothing', async (lab) => {
  await asNobody(
    lab,
    `refused 'install the package fuse3' env PATH=/nowhere "\${program[@]}" mount mnt
    refused 'user_allow_other' dmfuse mount --allow-other mnt
    touch locked
    chmod 0 locked
    refused 'permission denied' dmfuse mount mnt --create "x linear $PWD/locked 0"
    refused 'no such file or device' dmfuse mount mnt --create "x linear $PWD/none 0"
    refused '/etc' dmfuse mount /etc
    ! mounted
    dmfuse mount mnt
    dmfuse umount mnt`,
  );
  await until(() => lab.daemons().length === 0, 'all daemons to end');
});
