"""Processes that are killed at every operation they do on the disk, and disks that lose what was not synced."""
