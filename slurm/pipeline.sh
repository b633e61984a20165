#!/usr/bin/env bash
# Submit everything from raw tables to the CTR report, each stage after the success of the one
# before:
#
#   slurm/pipeline.sh --parts 16 --shard mine/shard.yaml \
#     --pretrain mine/pretrain.yaml --pretrain configs/zero2.yaml --ladder mine/ladder.yaml \
#     --dataset_dir data/mine --run_dir runs/mine/pretrain \
#     --released_dir released/mine --embeddings_dir runs/mine/embeddings \
#     --nodes 4 --gpus 8 --cpu_options '--partition=cpu' --gpu_options '--partition=gpu'
#
# --pretrain may be given several times; --nodes (1) and --gpus (8, a node; 0: one task a node, on
# its CPU) are of pre-training, --cpu_options of data_prep's jobs, --gpu_options of all others. The
# folders are handed to every stage that reads or writes them, whatever its file says. Prints the
# jobs on standard error, and the last one's id alone on standard output.
#
# Given again after a failure, it goes on: finished tars are kept, pre-training resumes or is left
# as it is when it has ended, and what comes after is made again.
set -euo pipefail

usage() {
  echo "pipeline.sh: $1" >&2
  sed -n '2,17s/^# \{0,1\}//p' "$0" >&2
  exit 2
}

parts="" shard="" ladder="" nodes=1 gpus=8
dataset_dir="" run_dir="" released_dir="" embeddings_dir=""
pretrain=() cpu_options=() gpu_options=()
while [ $# -gt 0 ]; do
  [ $# -gt 1 ] || usage "$1: found no value, expected one"
  case $1 in
    --parts) parts=$2 ;;
    --shard) shard=$2 ;;
    --pretrain) pretrain+=(--config "$2") ;;
    --ladder) ladder=$2 ;;
    --dataset_dir) dataset_dir=$2 ;;
    --run_dir) run_dir=$2 ;;
    --released_dir) released_dir=$2 ;;
    --embeddings_dir) embeddings_dir=$2 ;;
    --nodes) nodes=$2 ;;
    --gpus) gpus=$2 ;;
    --cpu_options) read -r -a cpu_options <<<"$2" ;;
    --gpu_options) read -r -a gpu_options <<<"$2" ;;
    *) usage "$1: no such option" ;;
  esac
  shift 2
done
for name in parts shard ladder dataset_dir run_dir released_dir embeddings_dir; do
  [ -n "${!name}" ] || usage "--$name: found none, expected one"
done
[ ${#pretrain[@]} -gt 0 ] || usage "--pretrain: found none, expected a configuration"
for file in "$shard" "$ladder" "${pretrain[@]}"; do
  [ "$file" = --config ] || [ -f "$file" ] || usage "$file: no such file"
done
[[ $nodes =~ ^[1-9][0-9]*$ && $gpus =~ ^[0-9]+$ ]] ||
  usage "found --nodes $nodes and --gpus $gpus, expected whole numbers"

scripts=$(dirname "${BASH_SOURCE[0]}")
tasks=$((gpus > 0 ? gpus : 1)) one_gpu=$((gpus > 0 ? 1 : 0))
submit() {  # submit AFTER OPTIONS... SCRIPT ARGUMENTS...; prints the job id
  local after=$1 id
  shift
  id=$(sbatch --parsable --kill-on-invalid-dep=yes --dependency="afterok:$after" \
    ${gpu_options[@]+"${gpu_options[@]}"} "$@")
  echo "${id%%;*}"               # a federation answers ID;CLUSTER
}

prep=$("$scripts/submit_data_prep.sh" "$parts" ${cpu_options[@]+"${cpu_options[@]}"} -- \
  --config "$shard" --dataset_dir "$dataset_dir")
export RUN_DIR=$run_dir
fit=$(submit "$prep" --nodes="$nodes" --ntasks-per-node="$tasks" --gpus-per-node="$gpus" \
  "$scripts/pretrain.sbatch" "${pretrain[@]}" --data.config.dataset_dir "$dataset_dir")
release=$(submit "$fit" --gpus-per-node="$one_gpu" \
  "$scripts/release.sbatch" "$dataset_dir" "$released_dir" "$embeddings_dir")
report=$(submit "$release" --gpus-per-node="$one_gpu" "$scripts/finetune.sbatch" ladder \
  --config "$ladder" --dataset_dir "$dataset_dir" --released "$released_dir" \
  --embeddings_dir "$embeddings_dir")
echo "pretrain $fit -> release $release -> ladder $report" >&2
echo "$report"
