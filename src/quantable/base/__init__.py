"""What knows none of the other rooms: errors, bits, devices, signals, memory, files."""
