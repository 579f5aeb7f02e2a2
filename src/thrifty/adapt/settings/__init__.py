"""Settings in which claims of the room are measured."""
