"""Other projects' checkpoints and recipes in the terms of this one, and back."""
