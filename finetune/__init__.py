"""CTR heads on a released checkpoint, and a report that says whether pre-training helped.

dataset + embeddings ─ data, content ─► one run (fit) ─► rungs × seeds (ladder) ─► report.html
"""
