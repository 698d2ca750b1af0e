"""A small world of tasks on lists of digits, and a base that can do them all but is not told which."""
