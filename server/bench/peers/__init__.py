"""What this machine's users have beside us, measured in turns with our own."""
