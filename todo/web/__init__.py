"""What all resources share of HTTP. Knows no resource and no database."""
