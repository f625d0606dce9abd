"""An audit, end to end: its settings, one run of it, what the folder holds, and sharing the work."""
