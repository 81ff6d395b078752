"""One file a format: what its files hold, and the rows that they become."""
