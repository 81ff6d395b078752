#!/bin/bash
# pgdpo on several nodes with torchrun: the same command on every node, at about the same time. Any node may be first.
#
#   HEAD=node0 NODES=2 configs/cluster/torchrun.sh train configs/wan21_14b.yaml train.zero_stage=3
#
# HEAD   a node that all others can reach, by name or address
# NODES  how many nodes
# GPUS   ranks on each node (8)
# PORT   a free port on HEAD (29500)
# TORCH_ELASTIC_SHUTDOWN_TIMEOUT  seconds that ranks have to save at Ctrl-C or SIGTERM before they are killed (600)
# RUN    the same name on all nodes of one run; another one keeps two runs on the same HEAD apart
#
# Nodes must see the same prepared data and output_dir (a shared file system) and have the same pgdpo installed.
set -euo pipefail
: "${HEAD:?the node that all others can reach}" "${NODES:?how many nodes}"
source "$(dirname "${BASH_SOURCE[0]}")/nccl.sh"
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}"

exec torchrun \
  --nnodes "$NODES" \
  --nproc-per-node "${GPUS:-8}" \
  --rdzv-backend c10d \
  --rdzv-endpoint "$HEAD:${PORT:-29500}" \
  --rdzv-id "${RUN:-pgdpo}" \
  -m pgdpo "$@"
