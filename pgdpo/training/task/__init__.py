"""What a run is given to learn, and what the data say of it."""
