"""One file a revision, each written out: what a released revision made must not change when the tables do."""
