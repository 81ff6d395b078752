#!/bin/bash
# pgdpo on several nodes with torchrun: the same command on every node, but for NODE, at about the same time.
#
#   HEAD=node0 NODES=2 NODE=0 configs/cluster/torchrun.sh train configs/wan21_14b.yaml train.zero_stage=3
#
# HEAD   node 0, by a name or an address that all others can reach
# NODES  how many nodes
# NODE   this node's number, from 0
# GPUS   ranks on each node (8)
# PORT   a free port on HEAD (29500)
# TORCH_ELASTIC_SHUTDOWN_TIMEOUT  seconds that ranks have to save at Ctrl-C or SIGTERM before they are killed (600);
#        torch before 2.12 does not read it and kills after 30: there, pkill -TERM -f -- '-u -m pgdpo' stops the ranks
#
# Nodes must see the same prepared data and output_dir (a shared file system) and have the same pgdpo installed.
#
# To stop a run: SIGTERM or Ctrl-C to one node's torchrun. All ranks of all nodes save and exit with 143 or 130, of which
# torchrun makes a 1. SIGUSR1 is for a rank: torchrun itself dies of it, and leaves its ranks behind.
set -euo pipefail
: "${HEAD:?node 0, by a name or an address that all others can reach}" "${NODES:?how many nodes}"
: "${NODE:?the number of this node, from 0}"
source "$(dirname "${BASH_SOURCE[0]}")/nccl.sh"
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}"

# Numbered nodes, and no rendezvous (--rdzv-backend c10d): there each launcher asks HEAD's for the number of nodes until
# its own ranks end. Where HEAD's is gone first, a good run ends with 1; where the network is cut off, the question stands
# for a minute and more after the ranks are gone. And ranks look for each other by HEAD, not by what node 0 calls itself.
exec torchrun \
  --nnodes "$NODES" \
  --node-rank "$NODE" \
  --nproc-per-node "${GPUS:-8}" \
  --master-addr "$HEAD" \
  --master-port "${PORT:-29500}" \
  -m pgdpo "$@"
