"""The users that own things."""
