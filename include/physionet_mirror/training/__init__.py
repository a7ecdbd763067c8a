"""The training set: small copies of the verified radiographs, as a loader reads them."""
