"""A long run of a whole mesh under churn, watched from outside: tools/soak."""
