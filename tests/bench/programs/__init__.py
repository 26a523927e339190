"""What the rows run in processes of their own: floors, load, and those who listen."""
