"""The recipes' data folders: what they must hold, and synthetic ones in their layout."""
