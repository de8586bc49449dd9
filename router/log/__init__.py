"""The log port: what was acknowledged is kept, and so is what a session is."""
