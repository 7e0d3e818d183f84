"""How things are written down: names of files, msgpack and JSON, trace context. No file is opened here."""
