# NCCL's settings, in one place: torchrun.sh, deepspeed.sh and slurm.sbatch read this file and print what it sets.
# A variable that is set already stays as it is.

# What NCCL says: WARN on errors alone; INFO shows which network and which GPUs it found, the first thing to look at
# when nodes wait for each other or are slow.
export NCCL_DEBUG="${NCCL_DEBUG:-WARN}"

# Network interfaces over which ranks find each other: all but loopback and containers' bridges. Name yours (eth0, ens,
# ib0) where a node has several and they hang at the start.
export NCCL_SOCKET_IFNAME="${NCCL_SOCKET_IFNAME:-^lo,docker}"

# The same for gloo, over which ranks agree on what to do, is one exact name: GLOO_SOCKET_IFNAME. Where it is not set,
# each rank finds its own: that of the way to the first node.

# InfiniBand and RoCE are taken by themselves. Name the adapters where some are for storage; 1 switches them off, to
# find out whether they are at fault.
# export NCCL_IB_HCA=mlx5_0,mlx5_1
# export NCCL_IB_DISABLE=1

# Tell the other ranks when one fails, instead of waiting for the timeout (torch's default, said here).
export TORCH_NCCL_ASYNC_ERROR_HANDLING="${TORCH_NCCL_ASYNC_ERROR_HANDLING:-1}"

env | grep -E '^(NCCL|TORCH_NCCL|GLOO)_' | sort >&2
