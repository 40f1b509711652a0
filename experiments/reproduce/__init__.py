"""Papers run again, one folder each: what they report beside what we measured."""
