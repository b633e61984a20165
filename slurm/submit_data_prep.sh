#!/usr/bin/env bash
# Submit the three stages of sharding, each after the success of the one before:
#
#   slurm/submit_data_prep.sh NUM_PARTS [sbatch options] -- [flags of python -m data_prep shard]
#   slurm/submit_data_prep.sh 8 --partition=cpu --account=me -- --config configs/mine/shard.yaml
#
# Prints the id of the last job alone on standard output, for `--dependency=afterok:ID`.
set -euo pipefail

num_parts=${1:-}
if ! [[ $num_parts =~ ^[1-9][0-9]*$ ]]; then
  echo "submit_data_prep.sh: NUM_PARTS: found '$num_parts', expected a whole number above 0" >&2
  sed -n '2,5s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
shift
options=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do options+=("$1"); shift; done
[ $# -gt 0 ] && shift
script=$(dirname "${BASH_SOURCE[0]}")/data_prep.sbatch

submit() {  # submit OPTIONS... -- ARGUMENTS...; prints the job id
  local own=()
  while [ "$1" != -- ]; do own+=("$1"); shift; done
  shift
  local id
  id=$(sbatch --parsable ${options[@]+"${options[@]}"} "${own[@]}" "$script" "$@")
  echo "${id%%;*}"               # a federation answers ID;CLUSTER
}

# kill-on-invalid-dep: without it a job whose predecessor failed stays in the queue for ever.
# afterok alone proves little: Slurm starts at once after a job it has forgotten. So each stage of
# `data_prep shard` also looks for the files of the one before.
chain=(--kill-on-invalid-dep=yes)
tables=$(submit --job-name=data_prep-tables -- tables "$@")
content=$(submit --job-name=data_prep-content --array="0-$((num_parts - 1))" --output=%x-%A_%a.out \
  "${chain[@]}" --dependency="afterok:$tables" -- content "$@")
manifest=$(submit --job-name=data_prep-manifest "${chain[@]}" --dependency="afterok:$content" -- manifest "$@")
echo "data_prep: tables $tables -> content $content ($num_parts parts) -> manifest $manifest" >&2
echo "$manifest"
