"""Part of Triptych; see README.md."""
