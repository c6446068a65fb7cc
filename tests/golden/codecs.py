"""Libraries whose own bytes are part of some outputs: a compressor and a linear algebra."""

import hashlib

import numpy as np
import zstandard


def codecs() -> dict[str, str]:
    """What each library is here: zstd's version, and a digest of what BLAS and LAPACK compute.

    A singular value decomposition differs in its last bits between processors and versions.
    """
    digest = hashlib.sha256()
    for rows, columns in ((16, 16), (33, 20), (384, 96), (600, 64)):
        grid = np.arange(rows * columns).reshape(rows, columns)
        matrix = np.cos(grid * 0.37) + (grid % 7) / 3
        orthogonal, upper = np.linalg.qr(matrix @ matrix.T @ matrix)
        for part in (orthogonal, upper, *np.linalg.svd(matrix, full_matrices=False)):
            digest.update(np.ascontiguousarray(part).tobytes())
    version = ".".join(map(str, zstandard.ZSTD_VERSION))
    return {"zstd": version, "blas": digest.hexdigest()}
