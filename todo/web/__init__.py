"""How HTTP is spoken here. Knows no resource and no database."""
