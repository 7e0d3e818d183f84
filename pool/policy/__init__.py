"""Rules that several processes must decide alike: blame, delays, prospects, causes of death. Pure."""
