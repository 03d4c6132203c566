"""What processes tell of themselves while they run, as numbers and as traces."""
