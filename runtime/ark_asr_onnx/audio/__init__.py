"""Audio in: sources of every kind, log-mel, the speech detector, windows."""
