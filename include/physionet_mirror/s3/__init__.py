"""S3's end: the bucket, its requests, what it can do and what it costs."""
