#!/bin/busybox sh
# First process of a test VM: stacks the read-only disks under a file system in memory and goes on from there.
# Whatever fails ends this script, and with it the kernel (panic=-1): the one who waits outside sees the reason in the log.
set -e
b=/bin/busybox
$b mount -t devtmpfs dev /dev
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
while read -r module; do $b insmod "/modules/$module"; done </modules/order

for try in 1 2 3 4 5 6 7 8 9 10; do
    found=
    for disk in /sys/block/vd*; do
        [ -e "$disk/serial" ] && found="$found $($b cat "$disk/serial")=${disk##*/}"
    done
    case "$found" in *root=*) case "$found" in *modules=*) case "$found" in *work=*) break ;; esac ;; esac ;; esac
    $b sleep 0.2
done
for pair in $found; do
    $b mkdir -p "/layers/${pair%%=*}"
    $b mount -t ext4 -o ro "/dev/${pair##*=}" "/layers/${pair%%=*}"
done
$b mkdir /layers/memory
$b mount -t tmpfs -o size=60% memory /layers/memory
$b mkdir /layers/memory/upper /layers/memory/overlay
$b mount -t overlay -o lowerdir=/layers/work:/layers/modules:/layers/root,upperdir=/layers/memory/upper,workdir=/layers/memory/overlay root /root
$b umount /sys /proc
exec $b switch_root /root /sbin/podpath-vm
