"""ZeRO-3: weights loaded in shares, gathered in forward."""
