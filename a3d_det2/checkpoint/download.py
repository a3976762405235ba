"""Weights given by a URL: the file of the cache, which is the one that the name says."""

import hashlib
import os
import re
from http.client import HTTPException
from urllib.parse import urlparse

from iopath.common.file_io import PathManager

from ..files import is_url

# At the end of a name, the first digits of the file's SHA-256, as torch.hub has them; dates look alike.
_HASH = re.compile(r"-(?!(?:19|20)\d{6}\.)([0-9a-f]{8}|[0-9a-f]{64})\.\w+$")


def find_weights(path: str, path_manager: PathManager) -> str:
    """
    Args:
        path: of a file, or a URL, which is downloaded if the cache has it not; either may end with a query such as
            ``?matching_heuristics=True``.
        path_manager: that downloads.

    Returns:
        the path of the file.

    Raises:
        FileNotFoundError: if there is no such file.
        OSError: if it cannot be downloaded.
        ValueError: if the URL leads out of the cache, or the downloaded file is not the one that the hash in its name
            says, as ``-a639ec97.pth`` does; it is removed from the cache.
    """
    name = path.partition("?")[0]
    local = name
    if is_url(name):
        if ".." in urlparse(name).path.split("/"):
            raise ValueError(f"{name}: expected a URL without '..', which would be written outside of the cache")
        try:
            local = path_manager.get_local_path(name)
        except (OSError, HTTPException, ValueError) as error:
            raise OSError(f"{name}: cannot be downloaded ({error})") from error
    if not os.path.isfile(local):
        raise FileNotFoundError(f"{name}: there is no such file of weights")
    if is_download(path) and (match := _HASH.search(name)):
        digest = sha256(local)
        if not digest.startswith(match[1]):
            size = os.path.getsize(local)
            os.remove(local)
            raise ValueError(
                f"{name}: expected a file whose SHA-256 begins with {match[1]}, as its name says, got {size} bytes of "
                f"{digest}; they were removed"
            )
    return local


def is_download(path: str) -> bool:
    """Whether the file is a copy in the cache, which may be removed; files by other schemes may be originals."""
    return path.startswith(("http://", "https://", "ftp://"))


def sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
