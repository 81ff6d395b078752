"""What outlives a run: its record, saves, publication, resume, export."""
