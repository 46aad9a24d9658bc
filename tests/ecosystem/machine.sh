#!/bin/sh
# machine.sh FOLDER PROJECT: systemd as the first process of a machine. Run it in namespaces of its own.
#
# The machine's files are those of this one, copied when they are written: whatever systemd cleans, this one keeps. The
# project is its /srv/todo.
set -eu
mount --make-rprivate /
mount -t tmpfs tmpfs "$1"
mkdir "$1/written" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/written,workdir=$1/work" "$1/root"
cd "$1/root"
mount -t proc proc proc
mount --rbind /dev dev
mount --rbind /sys sys
for folder in run sys/fs/cgroup; do mount -t tmpfs tmpfs "$folder"; done
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
	mount -t cgroup2 cgroup2 sys/fs/cgroup
else
	mkdir sys/fs/cgroup/systemd
	mount -t cgroup -o none,name=systemd cgroup sys/fs/cgroup/systemd
fi
mkdir -p srv/todo
mount --bind "$2" srv/todo
# No part of a boot that would change this machine's kernel, devices or mounts.
rm -r lib/systemd/system/sysinit.target.wants lib/systemd/system/local-fs.target.wants
printf '[Unit]\n' > etc/systemd/system/sysinit.target
printf '[Unit]\nWants=systemd-journald.service dbus.socket\n' > etc/systemd/system/machine.target
ln -sf /dev/null etc/systemd/system/systemd-journald-audit.socket
# Not chroot: no user namespace could be created in it.
pivot_root . mnt
umount --lazy /mnt
exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system --unit=machine.target
