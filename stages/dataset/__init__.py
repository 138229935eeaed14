"""The one layout of ingested data: its files, its image sets, its splits."""
