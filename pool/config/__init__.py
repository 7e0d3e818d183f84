"""config.json: read, checked, and turned into the slots that it asks for."""
