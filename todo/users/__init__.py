"""Users: the rows that owned rows refer to."""
