# NCCL's settings, in one place: torchrun.sh, deepspeed.sh and slurm.sbatch read this file and print what it sets.
# A variable that is set already stays as it is.

# What NCCL says: WARN on errors alone; INFO shows which network and which GPUs it found, the first thing to look at
# when nodes wait for each other or are slow.
export NCCL_DEBUG="${NCCL_DEBUG:-WARN}"

# Network interfaces over which ranks find each other: all but loopback and containers' bridges. Name yours (eth0, ens,
# ib0) where a node has several and they hang at the start.
export NCCL_SOCKET_IFNAME="${NCCL_SOCKET_IFNAME:-^lo,docker}"

# The same for gloo, over which ranks agree on what to do: one exact name. Left to itself it takes what this machine's own
# name means. Where that is a loopback address, as Debian and Ubuntu have it (127.0.1.1), other nodes' ranks would wait
# for it for ever: then, the interface of the default route.
if [[ -z "${GLOO_SOCKET_IFNAME:-}" && "$(getent ahostsv4 "$(uname -n)")" == 127.* ]]; then
  GLOO_SOCKET_IFNAME="$(awk '$2 == "00000000" { print $1; exit }' /proc/net/route)"
  [[ -z "$GLOO_SOCKET_IFNAME" ]] || export GLOO_SOCKET_IFNAME
fi

# InfiniBand and RoCE are taken by themselves. Name the adapters where some are for storage; 1 switches them off, to
# find out whether they are at fault.
# export NCCL_IB_HCA=mlx5_0,mlx5_1
# export NCCL_IB_DISABLE=1

# Tell the other ranks when one fails, instead of waiting for the timeout (torch's default, said here).
export TORCH_NCCL_ASYNC_ERROR_HANDLING="${TORCH_NCCL_ASYNC_ERROR_HANDLING:-1}"

env | grep -E '^(NCCL|TORCH_NCCL|GLOO)_' | sort >&2
