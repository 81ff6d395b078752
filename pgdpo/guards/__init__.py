"""What a run survives: bad steps, signals, ranks that die or stand still."""
