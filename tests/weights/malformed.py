"""Ways in which a checkpoint folder can be wrong, each as a function that spoils a good folder.

A mutation says which good folder it starts from and which words the refusal must hold.
"""

from __future__ import annotations

from tests.weights.bad_configs import BAD_CONFIGS
from tests.weights.bad_files import BAD_FILES
from tests.weights.bad_headers import BAD_HEADERS
from tests.weights.bad_tensors import BAD_TENSORS

MUTATIONS = BAD_CONFIGS | BAD_FILES | BAD_HEADERS | BAD_TENSORS
