"""What keeps a run from being lost: whole files, one run a folder, signals, hosts that fail."""
