#!/bin/bash
# The guard of one lab (harness.ts): guard.sh FOLDER LIMIT_SECONDS
#
# It is there before anything else of the lab is, and knows the folder that all of it lies in. It waits on its stdin.
# When that ends, because the test is over or because the test's process is gone, it takes everything away: processes
# that have the folder on their command line or work in it, mounts and loop devices below it, a cgroup of its name, the folder. What it had to force is
# printed, and the test fails by it.
#
# When LIMIT_SECONDS are over first, it prints what every thread of those processes does, and aborts the mounts through
# /sys/fs/fuse/connections/N/abort, so that whoever hangs in one goes on with an error.
folder=$1
limit=$2
trap '' INT TERM HUP

# Processes of the lab, by their command line or working directory: `processes daemons`, `others` or `all`.
processes() {
  local dir pid kind inside
  local -a words
  # Links only: whoever looks at the directory itself may hang with it.
  inside=" $(find /proc/[0-9]* -maxdepth 1 -name cwd -lname "$folder*" -printf '%h ' 2>/dev/null)"
  for dir in /proc/[0-9]*; do
    pid=${dir#/proc/}
    [[ $pid == "$$" || $pid == "$BASHPID" ]] && continue
    { mapfile -d '' -t words <"$dir/cmdline"; } 2>/dev/null || continue
    [[ ${words[*]} == *"$folder"* || $inside == *" $dir "* ]] && [[ ${words[*]} != *guard.sh* ]] || continue
    kind=others
    [[ ${words[*]} == *"main.js mount "* ]] && kind=daemons
    [[ $1 == all || $1 == "$kind" ]] && echo "$pid"
  done
}

# `MAJ:MIN MOUNT-POINT TYPE` of the mounts in the folder, the newest first. No path of a lab has blanks.
mounts() {
  awk -v inside="$folder/" 'index($5, inside) == 1 { for (i = 7; $i != "-"; i++); print $3, $5, $(i + 1) }' \
    /proc/self/mountinfo | tac
}

loops() {
  local file
  for file in /sys/block/loop*/loop/backing_file; do
    [[ $(cat "$file" 2>/dev/null) == "$folder"/* ]] || continue
    file=${file#/sys/block/}
    echo "/dev/${file%%/*}"
  done
}

# Runs a command for so many seconds at most; one that hangs in the kernel is left behind.
limited() {
  local seconds=$1 pid i
  shift
  "$@" >/dev/null 2>&1 &
  pid=$!
  for ((i = 0; i < seconds * 20; i++)); do
    if ! kill -0 "$pid" 2>/dev/null; then
      wait "$pid"
      return
    fi
    sleep 0.05
  done
  kill -9 "$pid" 2>/dev/null
  return 1
}

dump() {
  local pid task
  for pid in $(processes all); do
    echo "process $pid: $(tr '\0\n' '  ' <"/proc/$pid/cmdline" | cut -c1-200)"
    for task in /proc/"$pid"/task/*; do
      echo "  thread ${task##*/} $(cat "$task/comm"): $(awk '/^State/ { print $2, $3 }' "$task/status")," \
        "syscall $(cat "$task/syscall" 2>&1), wchan $(cat "$task/wchan")"
      sed 's/^/    /' "$task/stack" 2>/dev/null
    done
  done
  mounts
}

abort_connections() {
  local id at type
  mounts | while read -r id at type; do
    [[ $type == fuse* ]] || continue
    echo "guard: aborts the connection of $at"
    # A mount of fusectl that nobody else sees: many machines have none.
    unshare -m --propagation slave bash -c 'mount -t fusectl none /sys/fs/fuse/connections && echo 1 >"/sys/fs/fuse/connections/$0/abort"' \
      "${id#*:}"
  done
}

take_down() { # take_down MOUNT-POINT
  local i
  # A loop device may let go of its file a moment after its last user.
  for ((i = 0; i < 40; i++)); do
    limited 20 umount "$1" && return
    mountpoint -q "$1" || return
    [[ -z $aborted ]] || break
    sleep 0.1
  done
  echo "guard: umount $1 failed: detaches it"
  limited 20 umount -l "$1"
}

clean() {
  local id at type device pid i cgroup
  for pid in $(processes others); do kill -9 "$pid" 2>/dev/null; done
  mounts | while read -r id at type; do [[ $type == fuse* ]] || take_down "$at"; done
  for device in $(loops); do limited 10 losetup -d "$device"; done
  mounts | while read -r id at type; do take_down "$at"; done
  for ((i = 0; i < 200; i++)); do
    [[ -n $aborted || -z $(processes daemons)$(loops) ]] && break
    sleep 0.05
  done
  for pid in $(processes daemons); do
    echo "guard: the daemon $pid did not end: kills it"
    kill -9 "$pid"
    for ((i = 0; i < 100; i++)); do kill -0 "$pid" 2>/dev/null && sleep 0.05; done
  done
  [[ -z $(loops) ]] || echo "guard: left behind:" $(loops)
  for cgroup in /sys/fs/cgroup/{memory/,}"${folder##*/}"; do
    [[ ! -d $cgroup ]] || limited 10 rmdir "$cgroup"
  done
  # The test may have a file open still.
  umount -l "$folder"
  rm -rf --one-file-system "$folder"
}

aborted=
mkdir "$folder" || exit 1
# Tests that run meanwhile may have mount namespaces of their own, with copies of the mounts here. They are slaves: what is unmounted
# here must not live on there, and a file system with it.
mount --bind "$folder" "$folder" && mount --make-shared "$folder" || exit 1
echo ready
read -r -t "$limit"
if (($? > 128)); then
  echo "guard: the test is over its limit of $limit seconds"
  dump
  abort_connections
  aborted=yes
  echo aborted
  read -r -t 20
fi
clean
