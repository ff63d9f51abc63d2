"""Shape of paged attention, and its scratch on a CPU, in integers: what a memory plan counts.

No torch. The CPU backend cuts a step into *items*: a row and up to ``query_tile`` of its query
tokens. Items of one query tile size are worked on in *waves* of so many that their keys, values and
queries fit the budgets below, so that scratch is bounded whatever the batch, and stays near the
caches.
"""

from __future__ import annotations

from dataclasses import dataclass

from kernels.footprint import round_up

KEY_TILE = 512  # tokens of context a step of the key loop reads
QUERY_TILES = (1, 8, 32, 128)  # queries an item may hold; a chunk is cut into these
GATHER_BYTES = 8 << 20  # most bytes of keys and values gathered at once, but for a single item
QUERY_BYTES = 4 << 20  # most bytes of float32 queries, and of scores, at once; same exception
SIZES = (
    "num_query_heads",
    "num_kv_heads",
    "head_dim",
    "block_size",
    "element_bytes",
    "max_num_seqs",
    "max_num_batched_tokens",
    "max_model_len",
)
ASSUMED_THREADS = 8  # where nobody says how many compute
ALIGNMENT = 64  # every region of the scratch starts on a cache line


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """The facts that attention's work list and scratch are made from.

    ``element_bytes`` is the size of an element of the KV cache (and of the queries): 4 or 2.
    ``batch_invariant``, which a GPU's kernels heed, asks for answers that are the same bits in any
    batch: one order of additions for every row.
    ``windows`` are the different windows of the model's layers, 0 for none: a step has a work list
    for each.
    ``soft_cap`` and ``alibi`` say that layers have these: on a CPU a cap is applied to scores that
    lie in the workspace, and ALiBi is a mask for every query head. ``num_threads`` compute on a
    CPU, each with scratch of its own inside torch's flash operation.
    ``block_rows`` are the rows of head_dim, for each token, from a layer's block in the cache to
    its next one: 0 for K and V of its kv heads and nothing between.
    Raises ValueError when a number is out of range.
    """

    num_query_heads: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    element_bytes: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    batch_invariant: bool = False
    windows: tuple[int, ...] = (0,)
    soft_cap: bool = False
    alibi: bool = False
    num_threads: int = ASSUMED_THREADS
    block_rows: int = 0

    def __post_init__(self) -> None:
        for name in SIZES:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not self.windows or len(set(self.windows)) < len(self.windows) or min(self.windows) < 0:
            raise ValueError(
                f"windows are {self.windows}; they must differ, be at least 0, and be one or more"
            )
        if self.num_query_heads % self.num_kv_heads:
            raise ValueError(
                f"num_query_heads is {self.num_query_heads}; it must be a multiple of"
                f" num_kv_heads, {self.num_kv_heads}"
            )
        if self.block_size & (self.block_size - 1):
            raise ValueError(f"block_size is {self.block_size}; it must be a power of two")
        if self.element_bytes not in (2, 4):
            raise ValueError(f"element_bytes is {self.element_bytes}; it must be 2 or 4")

    @property
    def block_stride(self) -> int:
        """Elements of the cache from a layer's block to its next one."""
        rows = self.block_rows or 2 * self.num_kv_heads
        return rows * self.block_size * self.head_dim

    @property
    def group(self) -> int:
        """Query heads that share one KV head."""
        return self.num_query_heads // self.num_kv_heads

    @property
    def key_tile(self) -> int:
        """Tokens of one key tile: whole blocks."""
        return max(KEY_TILE, self.block_size)

    @property
    def key_step(self) -> int:
        """A partial key tile is cut to a multiple of this many tokens: whole blocks."""
        return max(32, self.block_size)

    @property
    def widest_tile(self) -> int:
        """Tokens that one gather brings at most."""
        context = round_up(self.max_model_len, self.key_step)
        return min(self.key_tile, context)


@dataclass(frozen=True, slots=True)
class ScratchRegions:
    """Byte sizes of a wave's scratch, in the order in which they lie; see kernels.cpu.attention."""

    gathered: int  # keys and values as stored: 2 x items x Hkv x key tile x head_dim
    widened: int  # the same in float32, where a 16-bit cache meets more than one query
    queries: int  # items x Hq x query_tile x head_dim, in the type the products are made in
    scores: int  # float32, items x mask_rows x key tile: a mask, or scores under a soft cap
    result: int  # float32 sums so far: as the queries
    log_sums: int  # float32 logarithms of the softmax's denominators: items x Hq x query_tile

    @property
    def sizes(self) -> list[int]:
        return [getattr(self, name) for name in self.__slots__]

    @property
    def total(self) -> int:
        return sum(self.sizes)


def query_tile_for(tokens: int) -> int:
    """The smallest query tile that holds ``tokens``, or the largest there is."""
    return next((tile for tile in QUERY_TILES if tile >= tokens), QUERY_TILES[-1])


def widens(shape: AttentionShape, query_tile: int) -> bool:
    """Whether products run in float32 on widened keys and values.

    16-bit products are slow without matrix units, and their rounded weights cost accuracy; with
    one query the pass that widens would cost more than it saves. Under a soft cap scores are
    large, and would be rounded to 16 bits.
    """
    return shape.element_bytes < 4 and (query_tile > 1 or shape.soft_cap)


def items_per_wave(shape: AttentionShape, query_tile: int) -> int:
    """How many items of this query tile a wave holds."""
    gather = 2 * shape.num_kv_heads * shape.widest_tile * shape.head_dim * shape.element_bytes
    queries = 4 * shape.num_query_heads * query_tile * shape.head_dim
    scores = 4 * mask_rows(shape, query_tile) * shape.widest_tile
    fit = min(GATHER_BYTES // gather, QUERY_BYTES // queries, QUERY_BYTES // scores)
    return max(1, min(fit, _most_items(shape, query_tile)))


def mask_rows(shape: AttentionShape, query_tile: int) -> int:
    """Rows of one item's mask or scores: of every query head where heads differ."""
    if shape.soft_cap or shape.alibi:
        return shape.num_query_heads * query_tile
    return shape.group * query_tile if query_tile > 1 else 1


def _most_items(shape: AttentionShape, query_tile: int) -> int:
    """Items of this tile that a step can have: only the largest tile comes twice in a row."""
    index = QUERY_TILES.index(query_tile)
    fewest_tokens = QUERY_TILES[index - 1] + 1 if index else 1
    most = max(1, shape.max_num_batched_tokens // fewest_tokens)
    return most if query_tile == QUERY_TILES[-1] else min(shape.max_num_seqs, most)


def scratch_regions(shape: AttentionShape, query_tile: int) -> ScratchRegions:
    """The scratch of one full wave of this query tile."""
    items = items_per_wave(shape, query_tile)
    keys = 2 * items * shape.num_kv_heads * shape.widest_tile * shape.head_dim
    rows = items * shape.num_query_heads * query_tile
    wide = widens(shape, query_tile)
    sizes = (
        keys * shape.element_bytes,
        keys * 4 if wide else 0,
        rows * shape.head_dim * (4 if wide else shape.element_bytes),
        items * mask_rows(shape, query_tile) * shape.widest_tile * 4,
        rows * shape.head_dim * 4,
        rows * 4,
    )
    return ScratchRegions(*(round_up(size, ALIGNMENT) for size in sizes))


def cpu_attention_regions(shape: AttentionShape) -> dict[str, int]:
    """What an AttentionWorkspace holds on a CPU, in bytes: for the query tile that needs most."""
    waves = [scratch_regions(shape, tile) for tile in QUERY_TILES]
    regions = max(waves, key=lambda wave: wave.total)
    return dict(zip(regions.__slots__, regions.sizes, strict=True))


def attention_temporary_bytes(shape: AttentionShape) -> int:
    """A bound on what torch allocates and frees inside one call, beyond workspace and result."""
    return max(wave_temporary_bytes(shape, tile) for tile in QUERY_TILES)


def wave_temporary_bytes(shape: AttentionShape, query_tile: int) -> int:
    """What one full wave of this query tile holds at its largest moment.

    Its queries are picked before they are laid out, and a mask is made before it is spread over the
    heads; these are gone when the products begin. These hold their result, its log-sums, which are
    merged in three more of them, and in the flash operation its threads' scratch. At the end the
    rows that are no padding are set apart.
    """
    items = items_per_wave(shape, query_tile)
    rows = items * shape.num_query_heads * query_tile
    values, queries = rows * shape.head_dim, rows * shape.head_dim * shape.element_bytes
    mask = 4 * items * query_tile * shape.widest_tile
    narrow = shape.element_bytes < 4
    products = 4 * values + 16 * rows
    if not shape.soft_cap:
        products += shape.num_threads * _flash_thread_bytes(shape, query_tile)
        if query_tile == 1:  # its result, before it is widened, and the mask, which is not spread
            products += (queries if narrow else 0) + (0 if shape.alibi else mask)
    set_apart = 4 * values + (queries if narrow else 0)
    return max(queries, mask, products, set_apart)


def _flash_thread_bytes(shape: AttentionShape, query_tile: int) -> int:
    """Scores, their maxima and sums, and results of the queries that a thread works on at once:
    torch's choice, which grows with the queries of a head."""
    queries = shape.group * query_tile
    at_once = 256 if queries >= 768 else 64 if queries >= 192 else 32
    return 4 * at_once * (shape.widest_tile + shape.head_dim + 2)
