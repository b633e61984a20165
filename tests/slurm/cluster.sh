#!/usr/bin/env bash
# A throw-away, real Slurm on one machine, for tests: two nodes, no systemd, nothing left behind.
#
#   cluster.sh install          apt-get what is missing (needs root)
#   cluster.sh start DIR PORT [net]
#                               start munged, slurmctld (on PORT) and two nodes; all files in DIR
#   cluster.sh stop DIR         end exactly what start started, and remove DIR
#   cluster.sh fail NODE DIR    kill node1 or node2 with all that runs on it, and tell slurmctld
#   cluster.sh boot NODE DIR    start it again
#   cluster.sh exec DIR CMD...  run a client of Slurm where it can reach the cluster
#
# Clients need SLURM_CONF=DIR/etc/slurm.conf. DIR must be short: unix socket names end at 108 bytes.
#
# A node is a process in its own pid, host name and mount namespace, so `hostname` says node1,
# /etc/hosts knows both, and killing that one process ends its slurmd and tasks and nothing else.
# The network is the machine's: every address is in 127.0.0.0/8. With `net` every node has a network
# of its own, as on real hardware, and so has a third host, login, on which slurmctld and the clients
# run: a bridge in it joins them, and all of it goes when its process does. A node claims 8 CPUs and
# 4 GPUs that need not exist, so the shipped batch files run as they are.
set -euo pipefail
NODES=(node1 node2)
CPUS=8 GPUS=4
SUBNET=10.231.77                  # of `net`, inside our own namespaces only
PATH=$PATH:/usr/sbin:/sbin

die() { echo "cluster.sh: $*" >&2; exit 1; }
wait_for() {  # wait_for SECONDS COMMAND...
  local i seconds=$1
  shift
  for ((i = 0; i < seconds * 20; i++)); do "$@" && return 0; sleep 0.05; done
  return 1
}

# ---------------------------------------------------------------- processes
# A pid is signalled only while its start time is the recorded one: a recycled pid is never hit.
stat_of() {  # prints "state start-time"
  local line
  { line=$(<"/proc/$1/stat"); } 2>/dev/null || return 1
  read -r -a line <<<"${line##*) }"
  echo "${line[0]} ${line[19]}"
}
record() {  # record NAME PID
  local state start
  read -r state start < <(stat_of "$2") || die "$1 (pid $2) died at once; logs in $DIR/log"
  echo "$2 $start" >"$DIR/pids/$1"
}
pid_of() {  # prints NAME's pid if that process still runs
  local pid start state now
  [ -s "$DIR/pids/$1" ] && read -r pid start <"$DIR/pids/$1" || return 1
  read -r state now < <(stat_of "$pid") || return 1
  [ "$now" = "$start" ] && [ "$state" != Z ] && echo "$pid"
}
gone() { ! pid_of "$1" >/dev/null; }
end() {  # end NAME SIGNAL
  local pid
  if pid=$(pid_of "$1"); then
    kill "-$2" "$pid" 2>/dev/null || true
    wait_for 5 gone "$1" || kill -KILL "$pid" 2>/dev/null || true
  fi
  rm -f "$DIR/pids/$1"
}

# ---------------------------------------------------------------- set-up
install() {
  local program missing=
  # one by one: `command -v a b` succeeds when either is there
  for program in slurmctld slurmd sbatch munged unshare nsenter ip; do
    command -v "$program" >/dev/null || missing+=" $program"
  done
  [ -n "$missing" ] || return 0
  [ "$(id -u)" = 0 ] || die "not installed, and this is not root:$missing; as root, run" \
    "apt-get install --no-install-recommends slurmctld slurmd slurm-client munge iproute2"
  command -v apt-get >/dev/null || die "not installed, and there is no apt-get:$missing"
  export DEBIAN_FRONTEND=noninteractive
  # The packages must not start system services. An existing policy (container images have one) stays.
  local policy=/usr/sbin/policy-rc.d own=
  if [ ! -e $policy ]; then own=1; printf '#!/bin/sh\nexit 101\n' >$policy; chmod 755 $policy; fi
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge iproute2 >/dev/null ||
    die "apt-get install failed"
  [ -z "$own" ] || rm $policy
}

write_config() {
  local k address="$(hostname -s)(127.0.0.1)"
  [ "$MODE" = net ] && address="login($SUBNET.1)"
  mkdir -p "$DIR"/{etc,munge,run,ctld,spool,log,pids,dev}
  chmod 755 "$DIR" "$DIR/run"
  chmod 700 "$DIR/munge"
  (umask 077; head -c 1024 /dev/urandom >"$DIR/munge/key")
  cat >"$DIR/etc/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$address
SlurmctldPort=$PORT
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# cred_expire is also how long a requeued job waits before it may start again; 120 s by default
AuthInfo=socket=$DIR/run/munge.sock,cred_expire=5
SlurmctldPidFile=$DIR/run/slurmctld.pid
SlurmdPidFile=$DIR/run/%n.pid
StateSaveLocation=$DIR/ctld
SlurmdSpoolDir=$DIR/spool/%n
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/%n.log
# no cgroups: nothing here needs more than fork and /proc
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=500
# believe the node lines below, whatever the machine has
SlurmdParameters=config_overrides
ReturnToService=2
# short scheduler cycles and time-outs; real clusters have 60 to 300 s
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
SlurmctldTimeout=10
SlurmdTimeout=30
MessageTimeout=10
KillWait=3
# finished jobs stay in \`scontrol show job\` for a day: there is no accounting to ask
MinJobAge=86400
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
# preemption delivers the job's own --signal first
SlurmctldParameters=preempt_send_user_signal
GresTypes=gpu
CONF
  printf '127.0.0.1 localhost\n::1 localhost\n' >"$DIR/etc/hosts"
  [ "$MODE" = net ] && echo "$SUBNET.1 login" >>"$DIR/etc/hosts"
  local name_address
  for k in "${!NODES[@]}"; do
    address=127.0.0.1 name_address=127.77.0.$((k + 1))
    [ "$MODE" = net ] && address=$(address_of "${NODES[k]}") name_address=$address
    echo "NodeName=${NODES[k]} NodeAddr=$address Port=$((PORT + k + 1)) CPUs=$CPUS RealMemory=64000 Gres=gpu:fake:$GPUS" \
      >>"$DIR/etc/slurm.conf"
    echo "$name_address ${NODES[k]}" >>"$DIR/etc/hosts"
  done
  cat >>"$DIR/etc/slurm.conf" <<CONF
PartitionName=main   Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL Default=NO  MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
CONF
  # slurmd 22.05 loads a cgroup plugin even where nothing uses it, and `autodetect` fails without a
  # mounted /sys/fs/cgroup; the v1 plugin, unused, touches nothing
  echo "CgroupPlugin=cgroup/v1" >"$DIR/etc/cgroup.conf"
  for ((k = 0; k < GPUS; k++)); do : >"$DIR/dev/gpu$k"; done   # looked at, never opened
  echo "NodeName=node[1-2] Name=gpu Type=fake File=$DIR/dev/gpu[0-$((GPUS - 1))]" >"$DIR/etc/gres.conf"
}

# ---------------------------------------------------------------- hosts
address_of() { echo "$SUBNET.$((100 + ${1#node}))"; }
host_up() {  # host_up NAME
  local host=$1 pid namespaces=(--mount --uts --pid)
  [ "$MODE" = net ] && namespaces+=(--net)
  rm -f "$DIR/run/$host.init"
  # /proc/self/stat is read before /proc is mounted anew: it holds the pid as the machine sees it.
  # SIGCHLD stays ignored over exec, so the kernel reaps the orphans of pid 1.
  # shellcheck disable=SC2016  # expanded inside
  setsid unshare "${namespaces[@]}" --fork --kill-child bash -c '
      read -r pid rest </proc/self/stat
      hostname "$1"
      mount -t proc proc /proc
      mount --bind "$2/etc/hosts" /etc/hosts
      if [ -d /etc/slurm ]; then mount --bind "$2/etc" /etc/slurm; fi
      if [ "$3" = net ]; then ip link set lo up; mount -t sysfs sysfs /sys 2>/dev/null; fi
      echo "$pid" >"$2/run/$1.tmp" && mv "$2/run/$1.tmp" "$2/run/$1.init"
      trap "" CHLD
      exec -a "test-slurm-$1" sleep infinity' _ "$host" "$DIR" "$MODE" </dev/null >"$DIR/log/$host.host.log" 2>&1 &
  wait_for 10 test -s "$DIR/run/$host.init" || die "$host did not come up: $(<"$DIR/log/$host.host.log")"
  record "$host" "$(<"$DIR/run/$host.init")"
}
inside() {  # inside HOST COMMAND...
  local pid namespaces=(-m -u -p)
  pid=$(pid_of "$1") || die "$1 is not up"
  shift
  [ "$MODE" = net ] && namespaces+=(-n)
  nsenter -t "$pid" "${namespaces[@]}" --wd="$PWD" -- "$@"
}
client() { if [ "$MODE" = net ]; then inside login "$@"; else "$@"; fi; }  # client COMMAND...
bridge_up() {  # in login
  local login
  login=$(pid_of login)
  nsenter -t "$login" -n ip link add br0 type bridge
  nsenter -t "$login" -n ip addr add "$SUBNET.1/24" dev br0
  nsenter -t "$login" -n ip link set br0 up
}
wire_up() {  # wire_up NODE: a cable from its eth0 to the bridge
  local pid login
  pid=$(pid_of "$1") login=$(pid_of login)
  nsenter -t "$login" -n ip link add "v-$1" type veth peer name eth0 netns "$pid"
  nsenter -t "$login" -n ip link set "v-$1" master br0 up
  nsenter -t "$pid" -n ip addr add "$(address_of "$1")/24" dev eth0
  nsenter -t "$pid" -n ip link set eth0 up
}
node_up() {  # node_up NODE
  local node=$1
  rm -f "$DIR/run/$node.pid"
  mkdir -p "$DIR/spool/$node"
  host_up "$node"
  [ "$MODE" = net ] && wire_up "$node"
  inside "$node" slurmd -f "$SLURM_CONF" -N "$node" </dev/null >>"$DIR/log/$node.start.log" 2>&1 ||
    die "slurmd of $node failed: $(tail -3 "$DIR/log/$node.log")"
  wait_for 10 test -s "$DIR/run/$node.pid" || die "slurmd of $node did not start: $(tail -3 "$DIR/log/$node.log")"
}
nodes_idle() { [ "$(client timeout 5 sinfo -h -N -p main -o '%t' 2>/dev/null | grep -c -x idle)" = "${#NODES[@]}" ]; }

start() {
  install
  [ "$(id -u)" = 0 ] || die "a node is a namespace, which needs root"
  [ ${#DIR} -le 60 ] || die "$DIR is longer than 60 characters"
  [ ! -e "$DIR" ] || die "$DIR exists; cluster.sh stop $DIR first"
  mkdir -p "$DIR/pids"
  echo "$MODE" >"$DIR/mode"
  trap start_failed EXIT
  write_config
  # --force: the key is our own, whatever the owner of the folders above it
  munged --force --socket="$DIR/run/munge.sock" --key-file="$DIR/munge/key" \
    --pid-file="$DIR/run/munged.pid" --log-file="$DIR/log/munged.log" --seed-file="$DIR/munge/seed" \
    </dev/null >"$DIR/log/munged.start.log" 2>&1 || die "munged failed"
  record munged "$(<"$DIR/run/munged.pid")"
  if [ "$MODE" = net ]; then host_up login && bridge_up; fi
  client slurmctld -i -f "$SLURM_CONF" </dev/null >"$DIR/log/slurmctld.start.log" 2>&1 || die "slurmctld failed"
  wait_for 10 test -s "$DIR/run/slurmctld.pid" || die "slurmctld did not start"
  # In login the file holds the pid as login sees it; login's end is slurmctld's.
  [ "$MODE" = net ] || record slurmctld "$(<"$DIR/run/slurmctld.pid")"
  local node
  for node in "${NODES[@]}"; do node_up "$node"; done
  wait_for 30 nodes_idle || die "the nodes did not become idle: $(client sinfo -N -l)"
}
start_failed() {  # a start that fails leaves nothing running, and shows why
  local code=$?
  [ $code = 0 ] || { tail -n 5 "$DIR"/log/*.log >&2 || true; stop; }
  exit $code
}
stop() {
  [ -d "$DIR/pids" ] || return 0   # never started here: nothing of ours to end or remove
  local node
  end slurmctld TERM
  for node in "${NODES[@]}" login; do end "$node" KILL; done
  end munged TERM
  rm -rf "$DIR"
}

action=${1:-}
[ $# -gt 0 ] && shift
case $action in fail | boot) node=${1:?node1 or node2}; shift ;; esac
if [ "$action" != install ]; then
  DIR=${1:-}
  case $DIR in
    /*) ;;
    *) sed -n '2,/^set -/{/^set -/!s/^# \{0,1\}//p}' "$0"; exit 2 ;;
  esac
  shift
  export SLURM_CONF=$DIR/etc/slurm.conf
  MODE=host
  if [ -s "$DIR/mode" ]; then MODE=$(<"$DIR/mode"); fi
fi
case $action in
  install) install ;;
  start)
    PORT=${1:?base port} MODE=${2:-host}
    case $MODE in host | net) ;; *) die "mode $MODE: expected net or nothing" ;; esac
    start
    ;;
  stop) stop ;;
  fail)
    end "$node" KILL
    client scontrol update NodeName="$node" State=DOWN Reason=failed
    ;;
  boot) node_up "$node" ;;
  exec) client "$@" ;;
  *) die "$action: expected install, start, stop, fail, boot or exec" ;;
esac
