"""Raw tables to a dataset folder: `toy` → `shard` → `verify`, and the readers; no torch.

    interactions · items · users · impressions
        │  relational.py   Ibis on DuckDB: rows, filters, cut-offs, splits      .work/
        │  item_shards.py  pictures, texts, vectors → items/*.tar + index
        │  user_shards.py  every user's events in time order → users/*.tar
        ▼  manifest.py     counts and SHA-256, written last
    dataset/ → open_dataset(): Dataset, EventLog, ItemContent

Heavy imports stay inside the commands, so that `--help` and array jobs start fast.
"""
