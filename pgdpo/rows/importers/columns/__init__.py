"""What the columns of a table of one's own are, by their names and values."""
