"""Memory: what was said is found again, by words and by meaning."""
