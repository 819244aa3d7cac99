"""Which experts stay: evidence -> elimination order -> plan.json."""
