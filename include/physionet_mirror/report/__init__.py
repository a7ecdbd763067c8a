"""The report of a run: report.json, report.html and failed_images.txt."""
