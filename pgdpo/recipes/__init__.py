"""A commented configuration that fits one's clips and GPUs."""
