"""Models on Wan's blocks: copies of them, and others with the same three branches."""
