"""What ``protocol/generate.py`` is made of: one module for each kind of file it writes."""
