"""What anybody may drop into in/, given to the whole pool."""
