"""The hot steps of the methods, one operation a file."""
