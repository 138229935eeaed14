"""Untrusted image files: headers, the decoding sandbox, near-duplicates."""
