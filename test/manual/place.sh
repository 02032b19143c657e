#!/bin/bash
# Runs the examples of a text: place.sh FOLDER NODE MAIN, in a mount namespace of its own. FOLDER/examples is the script.
#
# The root is an overlay whose upper layer is thrown away, so that examples may write where they like. What holds images are
# real folders of FOLDER: a tmpfs cannot do all that a disk's file system can. They find
#   /img/disk.img /img/base.img /img/remote.img     64 MiB each, with an ext4 and a file `kept` in it
#   dmfuse                                          the built one
#   work [FOLDER]       what somebody does there, /mnt/disk by default: changes `kept`, makes `made`
#   until_gone PATH     waits until nothing is there
#   detach              takes down file systems, loop devices and the mount
#   loop                the loop device that `losetup --show` has printed last
# Every command must succeed.
set -e -o pipefail
folder=$1 node=$2 main=$3
root=$folder/root

build_root() {
  local point type
  mkdir -p "$root" "$folder/layers"
  mount -t tmpfs none "$folder/layers"
  mkdir "$folder/layers/upper" "$folder/layers/work"
  mount -t overlay -o "lowerdir=/,upperdir=$folder/layers/upper,workdir=$folder/layers/work" none "$root"
  while read -r point type; do
    # Nor what others have mounted: a copy of it would keep it in use.
    [[ $point == / || $point == */dmfuse-e2e-* || $type == fuse* ]] || mount --bind "$point" "$root$point"
  done < <(awk '{ for (i = 7; $i != "-"; i++); print $5, $(i + 1) }' /proc/self/mountinfo)
  for point in /img /backup /srv /mnt /var/tmp; do
    mkdir -p "$root$point" "$folder/real$point"
    mount --bind "$folder/real$point" "$root$point"
  done
  mkdir -p "$root/mnt/dm" "$root/mnt/disk"
  # Fewer lanes than usual, which start sooner.
  cat >"$root/usr/local/bin/dmfuse" <<END
#!/bin/bash
[[ \$1 != mount ]] || set -- mount --lanes 2 "\${@:2}"
exec "$node" "$main" "\$@"
END
  chmod +x "$root/usr/local/bin/dmfuse"
}

make_images() {
  mkdir "$folder/content"
  head -c 3M /dev/urandom >"$folder/content/kept"
  truncate -s 64M "$root/img/disk.img"
  mkfs.ext4 -q -d "$folder/content" "$root/img/disk.img"
  cp --sparse=always "$root/img/disk.img" "$root/img/base.img"
  cp --sparse=always "$root/img/disk.img" "$root/img/remote.img"
}

build_root
make_images
cat >"$root/img/preamble" <<'END'
set -e -o pipefail
PATH=/usr/local/bin:$PATH
losetup() {
  local printed
  printed=$(command losetup "$@") || return
  [[ -z $printed ]] || echo "$printed"
  [[ " $* " != *' --show '* ]] || loop=$printed
}
work() {
  head -c 1M /dev/urandom >"${1:-/mnt/disk}/kept"
  head -c 1M /dev/urandom >"${1:-/mnt/disk}/made"
  sync -f "${1:-/mnt/disk}"
}
until_gone() {
  while [[ -e $1 ]]; do sleep 0.05; done
}
detach() {
  local point file name
  for point in /mnt/disk /srv; do
    # /srv is a folder of the lab: a mount, but not of a device.
    while findmnt -n "$point" | grep -q /dev/loop; do umount "$point"; done
  done
  for file in /sys/block/loop*/loop/backing_file; do
    [[ $(cat "$file" 2>/dev/null) == /mnt/dm/* ]] || continue
    name=${file#/sys/block/}
    command losetup -d "/dev/${name%%/*}"
  done
  ! findmnt -n -t fuse.dmfuse /mnt/dm >/dev/null || dmfuse umount /mnt/dm
}
trap 'code=$?; detach || code=1; exit $code' EXIT
END
cat "$root/img/preamble" "$folder/examples" >"$root/img/script"
chroot "$root" bash -x /img/script
