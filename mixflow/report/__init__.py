"""Reports of single programs, snapshots of many, and what differs between two of these."""
