"""The journal and the database under it."""
