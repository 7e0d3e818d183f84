"""A storm: any process is killed or stopped every 50 to 500 ms while clients submit, cancel, wait and die."""
