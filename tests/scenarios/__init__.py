"""What the pool promises, tried from outside: real supervisors, real workers, real kills."""
