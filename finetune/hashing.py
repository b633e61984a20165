"""Values to a fixed number of rows without a vocabulary, for columns of very many values.

Two values may share a row. Of n values in m rows, a value shares its row with another with
probability 1 - (1 - 1/m)^(n-1), about n/m where n is far below m: a million values in 10 million
rows leave 90 % alone. A value's row depends on its text alone, on no order and no machine.

Hashing is also the answer to a table that one device cannot hold; tables are not sharded over
devices. TorchRec would do that, at the price of kernels built for one torch release each and of
sharded checkpoints in the place of one safetensors file. A row of 16 floats with both moments of
Adam takes 192 bytes: 64 GiB hold 350 million rows, on a device or in host memory.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray

from finetune.counting import integers_or_strings


def hash_rows(column: pa.Array | pa.ChunkedArray, *, buckets: int) -> NDArray[np.int64]:
    """Bucket of each value, xxh3 of its UTF-8 text modulo `buckets`; -1 for a missing one.

    An integer hashes as its decimal text, so a column may turn from integers to strings.
    """
    encoded = integers_or_strings(column).dictionary_encode()
    texts = (
        encoded.dictionary.cast(pa.string()).cast(pa.binary()).to_pylist()
    )  # each distinct value once
    digests = (xxhash.xxh3_64_intdigest(text) % buckets for text in texts)
    bucket_of = np.fromiter(digests, np.int64, len(texts))
    index = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False)
    return np.asarray(np.append(bucket_of, -1)[index], dtype=np.int64)
