"""Foundations of all other packages: seeds, devices, processes, files, errors and costs."""
