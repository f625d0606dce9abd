"""What a gate is asked to check: the policy file, its schema, its rules and probes."""
