"""What of a model goes on which device, how much memory that takes, and what devices there are."""
