"""3x3 convolutions with a third of the multiplications, for pictures on a CPU.

Below `strips`. A tile of 4 x 2 results takes 6 x 4 products for a pair of channels, not 9 x 8:
Winograd's minimal filters (Lavin and Gray, 1509.09308), F(4, 3) down the rows, F(2, 3) along them.
"""

# Shapes: C = channels in, O = channels out, H = rows of a strip, W = its columns, T = tiles of four
#         rows, X = tiles of two columns, 6 and 4 = places of a tile, 24 = both,
#         P = tiles of a strip, N = numbers of a row

import torch
from torch import Tensor, nn

TILE = 4  # rows
MOST = 2**17  # C * O of packed weights: beyond, they take much memory in levels of little work
_WEIGHTS_DOWN = [
    [1 / 4, 0, 0],
    [-1 / 6, -1 / 6, -1 / 6],
    [-1 / 6, 1 / 6, -1 / 6],
    [1 / 24, 1 / 12, 1 / 6],
    [1 / 24, -1 / 12, 1 / 6],
    [0, 0, 1],
]
_WEIGHTS_ALONG = [[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]]
_TO_TILES = [
    [4.0, 0, -5, 0, 1, 0],
    [0, -4, -4, 1, 1, 0],
    [0, 4, -4, -1, 1, 0],
    [0, -2, -1, 2, 1, 0],
    [0, 2, -1, -2, 1, 0],
    [0, 4, 0, -5, 0, 1],
]
_FROM_TILES = [[1.0, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]


def pack(weight_OC33: Tensor) -> Tensor:
    """The weights as tiles are multiplied by them: [24, C, O]."""
    down_63 = torch.tensor(_WEIGHTS_DOWN, dtype=torch.double)
    along_43 = torch.tensor(_WEIGHTS_ALONG, dtype=torch.double)
    packed_64CO = torch.einsum("ai,ocij,bj->abco", down_63, weight_OC33.double(), along_43)
    return packed_64CO.flatten(0, 1).float().contiguous()


class Conv3(nn.Conv2d):
    """taming's 3x3 convolution, which keeps its packed weights until the weights change."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(c_in, c_out, 3, padding=1)
        self._packed: tuple[Tensor, int, Tensor] | None = None

    def packed(self) -> Tensor | None:
        """The packed weights; None where there is nothing to gain."""
        few = min(self.in_channels, self.out_channels) < 32
        many = self.in_channels * self.out_channels > MOST
        if few or many or self.weight.is_inference():
            return None
        weight, version = self.weight.detach(), self.weight._version
        if self._packed is not None:
            of, then, packed_24CO = self._packed  # held, so that no other weights take its place
            if of.data_ptr() == weight.data_ptr() and then == version:
                return packed_24CO
        self._packed = weight, version, pack(weight)
        return self._packed[2]


class Space:
    """Room for the tiles of one strip of at most `rows` rows, a multiple of four."""

    def __init__(self, rows: int, columns: int, c_in: int, c_out: int) -> None:
        tiles, across = rows // TILE, -(-columns // 2)
        self.columns = columns
        self.to_tiles_T66 = torch.tensor(_TO_TILES).expand(tiles, -1, -1)
        self.from_tiles_T46 = torch.tensor(_FROM_TILES).expand(tiles, -1, -1)
        self.rows_6THC = torch.zeros(6, tiles, 2 * across + 2, c_in)  # a column of zeros each side
        self.tiles_64TXC = torch.empty(6, 4, tiles, across, c_in)
        self.products_64TXO = torch.empty(6, 4, tiles, across, c_out)
        self.along_6TX2O = torch.empty(6, tiles, across, 2, c_out)
        self.found_T4WO = torch.empty(tiles, 4, 2 * across, c_out)

    def convolve(self, strip_HWC: Tensor, packed_24CO: Tensor) -> Tensor:
        """The convolution [H - 2, W, O] of a strip with a row more above and below it; there are
        zeros beside it. H - 2 is a multiple of four. Another call writes over the result."""
        tiles = (len(strip_HWC) - 2) // TILE
        rows_6THC, tiles_64TXC = self.rows_6THC[:, :tiles], self.tiles_64TXC[:, :, :tiles]
        products_64TXO = self.products_64TXO[:, :, :tiles]
        along_6TX2O, found_T4WO = self.along_6TX2O[:, :tiles], self.found_T4WO[:tiles]
        inside_6TN = rows_6THC[:, :, 1 : 1 + self.columns].flatten(2)
        strip_T6N = strip_HWC.flatten(1).unfold(0, 6, TILE).mT
        # Small as these products are, they are quicker than sums and differences one by one.
        torch.bmm(self.to_tiles_T66[:tiles], strip_T6N, out=inside_6TN.transpose(0, 1))
        _to_tiles_along(rows_6THC, tiles_64TXC)
        flat_24PO = products_64TXO.flatten(0, 1).flatten(1, 2)
        torch.bmm(tiles_64TXC.flatten(0, 1).flatten(1, 2), packed_24CO, out=flat_24PO)
        _from_tiles_along(products_64TXO, along_6TX2O)
        along_T6N = along_6TX2O.flatten(2).transpose(0, 1)
        torch.bmm(self.from_tiles_T46[:tiles], along_T6N, out=found_T4WO.flatten(2))
        return found_T4WO.flatten(0, 1)[:, : self.columns]


def _to_tiles_along(rows_6THC: Tensor, out_64TXC: Tensor) -> None:
    across = out_64TXC.shape[3]
    d = [rows_6THC[:, :, place::2][:, :, :across] for place in range(4)]
    torch.sub(d[0], d[2], out=out_64TXC[:, 0])
    torch.add(d[1], d[2], out=out_64TXC[:, 1])
    torch.sub(d[2], d[1], out=out_64TXC[:, 2])
    torch.sub(d[1], d[3], out=out_64TXC[:, 3])


def _from_tiles_along(products_64TXO: Tensor, out_6TX2O: Tensor) -> None:
    m = products_64TXO.unbind(1)
    torch.add(m[0], m[1], out=out_6TX2O[..., 0, :]).add_(m[2])
    torch.sub(m[1], m[2], out=out_6TX2O[..., 1, :]).sub_(m[3])
