"""The audit: whether all that is kept fits together, as of one moment. It changes nothing and locks nothing."""
