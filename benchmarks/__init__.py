"""Studies behind the tables in docs/measured.md and docs/loftr_v3.md; most files are commands."""
