#!/bin/sh
# First process of a test VM after init.sh: what a distribution's init would mount, then one server per channel.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs run /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t securityfs securityfs /sys/kernel/security
mount -t tracefs tracefs /sys/kernel/tracing
mount -t debugfs debugfs /sys/kernel/debug
mkdir -p /run/netns /run/lock
# No tunl0 and the like in new namespaces: they would take the interface indexes that labs give to pods.
echo 1 >/proc/sys/net/core/fb_tunnels_only_for_init_net
ip link set lo up
# Makes /dev/net/tun, which is there from the first on other machines.
modprobe -q tun
for channel in $(seq 0 $((CHANNELS - 1))); do
    "$XTASK" vm-serve "podpath.$channel" </dev/null >/dev/ttyS0 2>&1 &
done
# Takes in whatever processes lose their parents.
while :; do sleep 3600; done
