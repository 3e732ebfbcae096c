"""Tensors keep their values, shapes and dtypes on the way to a device, which no one waits for."""

import torch
from fake_cuda import fake_cuda

from splatdistill.ops import send, upload

PARTS = [
    torch.tensor(2.5),
    torch.arange(6).view(2, 3),
    torch.tensor([True, False, True]),
    torch.zeros(0, 4),
    torch.linspace(0, 1, 5, dtype=torch.float64)[::2],
    torch.tensor([1.0, 2.0]).half(),
    torch.tensor([7.0])[None].expand(3, 1),
    torch.ones(1).expand(1, 1)[:, 0].as_strided((1,), (0,)),
]


def test_what_arrives_is_what_was_sent_in_one_copy_without_a_wait():
    with fake_cuda() as cuda:
        sent = upload(PARTS, "cuda")
        assert not cuda.waits and cuda.copies == 1
        for before, after in zip(PARTS, sent, strict=True):
            assert after.is_cuda and after.dtype == before.dtype and after.shape == before.shape
            assert torch.equal(after.cpu(), before)


def test_what_is_there_already_stays():
    assert all(a is b for a, b in zip(PARTS, upload(PARTS, "cpu"), strict=True))
    with fake_cuda() as cuda:
        (there,) = upload([PARTS[1]], "cuda")
        again, other = upload([there, PARTS[0]], "cuda")
        assert again is there and other.is_cuda and cuda.copies == 2 and not cuda.waits


def test_sending_takes_the_dtype_of_the_other():
    with fake_cuda():
        (like,) = upload([torch.zeros(2, dtype=torch.float16)], "cuda")
        sent = send(torch.tensor([1.0, 2.0], dtype=torch.float64), like)
        assert sent.is_cuda and sent.dtype == torch.float16 and sent.tolist() == [1.0, 2.0]
