"""What a run leaves to read: report.json, report.html and failed_images.txt."""
