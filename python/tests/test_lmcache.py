"""The LMCache serializer inside LMCache: its registry, its worker threads, its file adapter and its first-level memory."""

import logging
import select
import tempfile
import unittest
from pathlib import Path

import torch
from lmcache.v1.distributed.api import MemoryLayoutDesc, ObjectKey
from lmcache.v1.distributed.config import L1ManagerConfig, L1MemoryManagerConfig
from lmcache.v1.distributed.l1_manager import L1Manager
from lmcache.v1.distributed.l2_adapters.fs_l2_adapter import FSL2Adapter, FSL2AdapterConfig
from lmcache.v1.distributed.l2_adapters.serde_wrapper import SerdeL2AdapterWrapper
from lmcache.v1.distributed.serde import SerdeConfig, create_serde_processor
from lmcache.v1.memory_management import MemoryObjMetadata, TensorMemoryObj

from lmcache.v1.platform import consume_fd

import kvturbo.lmcache  # noqa: F401, registers the type

logging.disable(logging.ERROR)  # what is refused on purpose

LAYERS, TOKENS, HEADS, HEAD_DIM = 3, 256, 2, 64
SHAPE = torch.Size([2, LAYERS, TOKENS, HEADS * HEAD_DIM])
KEY = ObjectKey(chunk_hash=b"chunk", model_name="some/model", kv_rank=0)
WAIT_MS = 20000


def memory(tensor):
    """A memory object of LMCache's on a tensor's memory."""
    metadata = MemoryObjMetadata(shape=tensor.shape, dtype=tensor.dtype, address=0, phy_size=tensor.nbytes, ref_count=0,
                                 shapes=[tensor.shape], dtypes=[tensor.dtype])
    return TensorMemoryObj(tensor.flatten().view(torch.uint8), metadata, None)


def states(dtype=torch.bfloat16, seed=1):
    """Keys with a mean a channel, as models have them."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(SHAPE, generator=generator)
    values[0] += 3 * torch.randn(LAYERS, 1, HEADS * HEAD_DIM, generator=generator)
    return values.to(dtype)


def processor(**options):
    return create_serde_processor(SerdeConfig("kvturbo", {"head_dim": HEAD_DIM, **options}))


def wait(fd):
    if not select.select([fd], [], [], WAIT_MS / 1000)[0]:
        raise TimeoutError("LMCache did not answer")
    consume_fd(fd)


def succeeded(result):
    if result is None:
        raise TimeoutError("LMCache has no result yet")
    return result


def serialize(serde, tensor, key=KEY):
    """The stored bytes, or None if LMCache says that it failed."""
    size = serde.estimate_serialized_size(MemoryLayoutDesc([tensor.shape], [tensor.dtype]))
    stored = memory(torch.full((size,), 255, dtype=torch.uint8))
    task = serde.submit_serialize([memory(tensor)], [stored], [key])
    wait(serde.get_serialize_event_fd())
    return stored if succeeded(serde.query_serialize_result(task)) else None


def deserialize(serde, stored, dtype=torch.bfloat16, key=KEY):
    target = torch.zeros(SHAPE, dtype=dtype)
    task = serde.submit_deserialize([stored], [memory(target)], [key])
    wait(serde.get_deserialize_event_fd())
    return target if succeeded(serde.query_deserialize_result(task)) else None


class Serde(unittest.TestCase):
    def assert_near(self, got, wanted, tolerance):
        self.assertLess(float((got.float() - wanted.float()).norm() / wanted.float().norm()), tolerance)

    def test_round_trip(self):
        for dtype in (torch.bfloat16, torch.float16):
            tensor = states(dtype)
            centred = tensor[0].float() - tensor[0].float().mean(dim=1, keepdim=True)
            serde = processor()
            stored = serialize(serde, tensor)
            restored = deserialize(serde, stored, dtype)
            self.assert_near(restored[1], tensor[1], 0.2)
            # The error of keys is that of what is left of them without their mean: 4 bits err by 0.1.
            self.assertLess(float((restored[0].float() - tensor[0].float()).norm()), 0.12 * float(centred.norm()))
            self.assertLess(stored.get_size(), tensor.nbytes / 4)
            serde.close()

    def test_f16_keeps_halves(self):
        tensor = states(torch.float16)
        serde = processor(codec="f16", max_workers=2)
        self.assertTrue(torch.equal(deserialize(serde, serialize(serde, tensor), torch.float16), tensor))
        serde.close()

    def test_foreign_bytes_are_not_restored(self):
        serde = processor()
        stored = serialize(serde, states())
        good = stored.tensor.clone()
        self.assertIsNone(deserialize(serde, stored, key=ObjectKey(b"chunk", "other/model", 0)))
        for at, value in ((0, 1), (4, 9), (6, 2), (16, 200)):  # magic, version, flags, codec
            damaged = good.clone()
            damaged[at] = value
            self.assertIsNone(deserialize(serde, memory(damaged)))
        self.assertIsNone(deserialize(serde, memory(good[:-1].clone())))
        damaged = good.clone()
        damaged[-128:] = 255  # norms that are not finite
        self.assertIsNone(deserialize(serde, memory(damaged)))
        self.assertIsNotNone(deserialize(serde, memory(good)))
        other = processor(codec="k3v2")
        self.assertIsNone(deserialize(other, memory(good)))
        serde.close()
        other.close()

    def test_what_cannot_be_stored(self):
        serde = processor()
        broken = states()
        broken[0, 1, 5, 3] = float("nan")
        self.assertIsNone(serialize(serde, broken))
        serde.close()
        for shape in ([1, 3, 256, 128], [2, 3, 256, 100], [2, 256, 128]):
            with self.assertRaisesRegex(ValueError, "chunks are"):
                processor().estimate_serialized_size(MemoryLayoutDesc([torch.Size(shape)], [torch.bfloat16]))
        with self.assertRaisesRegex(ValueError, "unknown option codek"):
            processor(codek="k4v3")

    def test_through_the_file_adapter(self):
        l1 = L1Manager(L1ManagerConfig(L1MemoryManagerConfig(size_in_bytes=64 << 20, use_lazy=False, shm_name="")))
        with tempfile.TemporaryDirectory() as folder:
            adapter = SerdeL2AdapterWrapper(FSL2Adapter(FSL2AdapterConfig(folder)), processor(), l1)
            tensor, target = states(), torch.zeros(SHAPE, dtype=torch.bfloat16)
            task = adapter.submit_store_task([KEY], [memory(tensor)])
            wait(adapter.get_store_event_fd())
            self.assertIn(task, adapter.pop_completed_store_tasks())
            files = list(Path(folder).rglob("*.data"))
            self.assertEqual([f.stat().st_size for f in files], [processor().estimate_serialized_size(MemoryLayoutDesc([SHAPE], [tensor.dtype]))])
            task = adapter.submit_load_task([KEY], [memory(target)])
            wait(adapter.get_load_event_fd())
            self.assertTrue(adapter.query_load_result(task).test(0))
            self.assert_near(target, tensor, 0.1)
            adapter.close()
        l1.close()


if __name__ == "__main__":
    unittest.main()
