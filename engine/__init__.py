"""What every command stands on: errors, options, devices, seeds, processes, files."""
