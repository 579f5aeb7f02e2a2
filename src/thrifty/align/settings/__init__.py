"""Settings in which claims are measured: a small decoder, taught here in seconds, and what its answers are worth."""
