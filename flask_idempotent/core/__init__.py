"""The pure part: keys, fingerprints, records and the rules between them. Imports nothing of ours but itself."""
