"""What a run costs: bytes of memory and of disk, FLOPs, seconds."""
