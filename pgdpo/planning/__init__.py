"""What a configuration will need, worked out before any weight is loaded: memory, time, disk."""
