"""What MIMIC-CXR's reports and MIMIC-IV's stays say of each study: two tables beside the training index."""
