"""What clients talk to: the scheduler of sequences, the HTTP APIs, and the page."""
