#!/bin/bash
# pgdpo on the nodes of a hostfile: given once, on the first of them.
#
#   configs/cluster/deepspeed.sh train configs/wan21_14b.yaml train.zero_stage=3
#
# HOSTFILE  nodes and their GPUs (the file `hostfile` beside this one)
# PORT      a free port on the first node (29500)
#
# Every node must be reached by ssh without a password, have pdsh, and the same pgdpo at the same path. DeepSpeed hands
# NCCL_* and PYTHON* on to the other nodes; further variables go into a file .deepspeed_env, NAME=VALUE a line.
#
# To stop a run: SIGTERM to ranks, on any one node. All ranks save, and deepspeed ends with 143:
#
#   pkill -TERM -f -- '-u -m pgdpo'
#
# Not to deepspeed itself: on one node it dies of SIGTERM at once and its ranks train on; on several it hands it to the
# ranks and kills after 30 s what still saves, which no option changes. Where a scheduler sends SIGTERM, take torchrun.sh.
set -euo pipefail
here="$(dirname "${BASH_SOURCE[0]}")"
source "$here/nccl.sh"

exec deepspeed \
  --hostfile "${HOSTFILE:-$here/hostfile}" \
  --master_port "${PORT:-29500}" \
  --module pgdpo "$@"
