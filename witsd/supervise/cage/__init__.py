"""What runs inside a sandbox, or becomes one: ``guard`` and what it needs, of the standard library alone.

The daemon starts ``guard`` with ``python -I -S`` for each piece of foreign code and talks with it through its standard
streams (``frames``). Nothing here imports anything else of witsd.
"""
