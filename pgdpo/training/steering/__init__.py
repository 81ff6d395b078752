"""What a run decides by itself: `train.steer`'s rules, by figures of held-out pairs."""
