"""User encoders against their equations."""

import torch
from torch.nn.utils.rnn import pack_padded_sequence

from minionerec.legommenders.users import LastState, PolyAttention


def test_the_gru_s_state_is_that_of_the_packed_sequences():
    torch.manual_seed(0)
    encoder, vectors, lengths = LastState(4), torch.randn(3, 5, 4), torch.tensor([5, 2, 1])
    mask = torch.arange(5) < lengths[:, None]
    _, last = encoder.gru(pack_padded_sequence(vectors, lengths, batch_first=True))
    torch.testing.assert_close(encoder(vectors, mask), encoder.linear(last[0]))
    for row, length in enumerate(lengths):  # and of each history alone, without padding
        _, alone = encoder.gru(vectors[row : row + 1, :length])
        torch.testing.assert_close(encoder(vectors, mask)[row], encoder.linear(alone[0, 0]))


def test_poly_is_one_softmax_for_each_code_over_what_is_real():
    torch.manual_seed(0)
    encoder, vectors = PolyAttention(4, 3, 5), torch.randn(2, 6, 4)
    mask = torch.tensor([[1, 1, 0, 0, 0, 0], [1, 0, 1, 1, 0, 1]]).bool()
    result = encoder(vectors, mask)
    for row in range(2):
        x = vectors[row][mask[row]]
        weights = (encoder.codes.weight @ torch.tanh(encoder.dense.weight @ x.T)).softmax(1)
        torch.testing.assert_close(result[row], weights @ x)
