"""One paper a file: what it changes on the core, and nothing else. Papers import the core, never each other."""
