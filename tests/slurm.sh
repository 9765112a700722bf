#!/usr/bin/env bash
# A Slurm of one node for the tests, as root, without systemd, cgroups or an accounting database: `tests/slurm.sh start|stop`.
# Debian's packages: slurmctld slurmd slurm-client munge. sacct fails here, as it does on a cluster without accounting.
set -euo pipefail
root=${TMPDIR:-/tmp}/vera-bench-slurm
conf=$root/slurm.conf
node=$(hostname -s)

if [ "${1:-}" = stop ]; then
  scancel --user="$(id -un)" || true # what a test that failed has left
  for name in slurmctld slurmd; do
    if [ -f "$root/$name.pid" ]; then kill "$(cat "$root/$name.pid")" || true; fi
  done
  while pidof slurmctld slurmd >/dev/null; do sleep 0.1; done # the next start would take a daemon that ends for its own
  exit 0
fi
if [ -e /etc/slurm/slurm.conf ] && [ "$(readlink -f /etc/slurm/slurm.conf)" != "$(readlink -f "$conf")" ]; then
  echo "error: /etc/slurm/slurm.conf is not of these tests, and stays as it is" >&2
  exit 1
fi
mkdir -p "$root"/state "$root"/spool /etc/slurm

# munge signs what the daemons say to each other. It insists on the owner and mode of its folders.
install -d -o munge -g munge -m 0700 /etc/munge /var/lib/munge /var/log/munge
install -d -o munge -g munge -m 0755 /run/munge
if [ ! -s /etc/munge/munge.key ]; then
  head -c 1024 /dev/urandom >/etc/munge/munge.key
  chown munge:munge /etc/munge/munge.key
  chmod 0400 /etc/munge/munge.key
fi
munge -n </dev/null >/dev/null 2>&1 || runuser -u munge -- /usr/sbin/munged </dev/null >/dev/null 2>&1
until munge -n </dev/null >/dev/null 2>&1; do sleep 0.1; done

cat >"$conf" <<END
ClusterName=tests
SlurmctldHost=$node(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
StateSaveLocation=$root/state
SlurmdSpoolDir=$root/spool
SlurmctldPidFile=$root/slurmctld.pid
SlurmdPidFile=$root/slurmd.pid
SlurmctldLogFile=$root/slurmctld.log
SlurmdLogFile=$root/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0
ReturnToService=2
MpiDefault=none
# A job that is queued again waits for the end of its credential: two minutes by default
AuthInfo=cred_expire=10
KillWait=5
NodeName=$node NodeAddr=127.0.0.1 CPUs=$(nproc --all) RealMemory=$(awk '/MemTotal/ { print int($2 / 1024 * 0.9) }' /proc/meminfo) State=UNKNOWN
PartitionName=main Nodes=$node Default=YES MaxTime=INFINITE State=UP
END
echo CgroupPlugin=disabled >"$root/cgroup.conf"
ln -sfn "$conf" /etc/slurm/slurm.conf
ln -sfn "$root/cgroup.conf" /etc/slurm/cgroup.conf
# -c: without the jobs of tests that were killed
pidof slurmctld >/dev/null || slurmctld -c -f "$conf" </dev/null >/dev/null 2>&1
pidof slurmd >/dev/null || slurmd -f "$conf" -N "$node" </dev/null >/dev/null 2>&1
for _ in $(seq 100); do
  if sinfo --noheader --format=%T | grep -qE 'idle|mixed|allocated'; then exit 0; fi
  sleep 0.2
done
echo "error: the node does not come up: see $root" >&2
exit 1
