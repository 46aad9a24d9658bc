"""What needs a cluster of Citus: TEST_CITUS_URL and TEST_CITUS_WORKERS name it."""
