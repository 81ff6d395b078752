"""How a step is computed on ranks: DeepSpeed, sequence parallelism, attention, memory."""
