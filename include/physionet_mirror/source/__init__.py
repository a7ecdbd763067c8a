"""PhysioNet's end: its website and its S3 access point."""
