"""A talking portrait from one picture and a recording."""
