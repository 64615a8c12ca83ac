#!/bin/bash
# Process 1 of a laboratory in which systemd itself runs the units of deploy/systemd, as they are, on a machine like
# the one they were written for: programs in /opt/instahide, users of the sysusers file, nothing of the host to write.
#
#     become_systemd.sh STATE ROOT PREFIX BASE_PREFIX     STATE: /var/lib and /srv of that machine
set -eu
# shellcheck disable=SC2034 # they are read by name below
state=$1 root=$2 prefix=$3 base=$4
lab=/run/laboratory

mount --make-rprivate /
ip link add outside type bridge # an interface to see, or not
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p $lab/units $lab/etc/etc /run/systemd
hold=$(mktemp -d /run/laboratory/hold.XXXX)
for name in state root prefix base; do # before their places are covered
    mkdir "$hold/$name"
    mount --bind "${!name}" "$hold/$name"
done

# Programs: this environment, its Python and our source under /opt, as ProtectHome and PrivateTmp hide other places.
mount -t tmpfs -o mode=755 tmpfs /opt
mkdir -p /opt/python /opt/source /opt/environment /opt/instahide/bin
mount --bind "$hold/base" /opt/python
mount --bind "$hold/root" /opt/source
mount --bind "$hold/prefix" /opt/environment
version=$(basename /opt/environment/lib/python3*)
packages=/opt/instahide/lib/$version/site-packages
mkdir -p "$packages"
for entry in /opt/environment/lib/"$version"/site-packages/*; do
    case $entry in *__editable__*) ;; *) ln -s "$entry" "$packages/" ;; esac
done
for package in instahide federation theory_modules; do ln -sfn "/opt/source/$package" "$packages/$package"; done
ln -s "/opt/python/bin/$version" /opt/instahide/bin/python
echo "home = /opt/python/bin" > /opt/instahide/pyvenv.cfg
for script in /opt/environment/bin/*; do
    if [ "$(head -c 2 "$script" | tr -d '\0')" = '#!' ] && head -n 1 "$script" | grep -q python; then
        { echo '#!/opt/instahide/bin/python'; tail -n +2 "$script"; } > "/opt/instahide/bin/$(basename "$script")"
        chmod 755 "/opt/instahide/bin/$(basename "$script")"
    fi
done

# A Python built with a shared library looks for it where it was built, which no unit sees here.
mkdir -p /run/systemd/system.conf.d
printf '[Manager]\nDefaultEnvironment=LD_LIBRARY_PATH=/opt/python/lib\n' > /run/systemd/system.conf.d/python.conf

# Users, as systemd-sysusers makes them.
cp /etc/passwd /etc/group $lab/etc/etc/
touch $lab/etc/etc/shadow $lab/etc/etc/gshadow
systemd-sysusers --root=$lab/etc /opt/source/deploy/systemd/instahide.sysusers.conf
mount --bind $lab/etc/etc/passwd /etc/passwd
mount --bind $lab/etc/etc/group /etc/group

mount --bind "$hold/state/lib" /var/lib
mount --bind "$hold/state/srv" /srv

# Units: ours as they are, stubs for what a whole system has, and the trial that starts them.
cp /opt/source/deploy/systemd/*.service $lab/units/
for target in sysinit basic shutdown umount network-online time-sync multi-user sockets timers paths slices; do
    printf '[Unit]\nDefaultDependencies=no\n' > $lab/units/$target.target
done
cat > $lab/units/trial.service <<UNIT
[Unit]
DefaultDependencies=no
[Service]
Type=oneshot
TimeoutStartSec=infinity
Environment=PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1
StandardOutput=file:/srv/trial.out
StandardError=file:/srv/trial.err
ExecStart=/opt/instahide/bin/python /opt/source/tests/deploy/lab/units_under_systemd.py /srv
ExecStopPost=/bin/touch /srv/trial.over
UNIT
printf '[Unit]\nDefaultDependencies=no\nWants=trial.service\n' > $lab/units/trial.target

# Of the control groups only systemd's own, so that nothing of the host's accounting is touched.
mount -t tmpfs tmpfs /sys/fs/cgroup
mkdir /sys/fs/cgroup/systemd
mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd
exec env -i container=laboratory PATH=/usr/bin:/usr/sbin:/bin:/sbin SYSTEMD_UNIT_PATH=$lab/units \
    /lib/systemd/systemd --system --unit=trial.target --log-target=console --log-level=notice --show-status=no
