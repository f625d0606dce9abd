"""What ``scripts/device_check.py`` measures on one accelerator, or at toy size on a CPU."""
