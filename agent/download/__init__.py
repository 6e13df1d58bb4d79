"""The published data sets, normalisations and checkpoints: fetched where a run asks for one that is not there.

``cfg/base/downloads.yaml`` says where each belongs and where it is on Google Drive. Before Google Drive a mirror is asked, if there is one:

* ``DPPO_MIRROR``: an http(s) address or a folder, under which the same paths lie (``<mirror>/robomimic/lift/train.npz``,
  ``<mirror>/robomimic-pretrain/lift/.../state_5000.pt``), each with its ``.sha256`` beside it or without.
* ``DPPO_OFFLINE=1``: the network is left alone. A folder as mirror still works.

Nothing unchecked gets its final name. The sha256 of a file is noted on its first download in ``<file>.sha256`` beside it (the format of
``sha256sum -c``) and compared at every use and every later download. Beside the file rather than in one list for all: it moves, is copied
and is deleted with the file, no two downloads write to it, and a folder that was downloaded is a mirror with checksums as it stands.
"""

from agent.download.catalogue import Entry, catalogue, find
from agent.download.fetcher import ensure, fetch
from agent.download.notes import forget, recorded, verify
from agent.download.transfer import Patience

__all__ = ["Entry", "Patience", "catalogue", "ensure", "fetch", "find", "forget", "recorded", "verify"]
