"""What every other package builds on: seeds, devices, processes, files, errors, costs."""
