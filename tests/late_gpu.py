"""A GPU on the CPU: streams do nothing before something waits for them, and freed memory is used again at once."""

import weakref
from contextlib import contextmanager

import torch

GARBAGE = 77


class Stream:
    """Work that is done in order, when it must be: `is_early` does it at once, which streams may as well."""

    def __init__(self, name, is_early=False):
        self.name, self.is_early = name, is_early
        self.work, self.num_done = [], 0

    def add(self, work):
        self.work.append(work)
        if self.is_early:
            self.run(len(self.work))

    def run(self, end):
        while self.num_done < end:
            self.num_done += 1
            self.work[self.num_done - 1]()

    def wait_stream(self, other):
        end = len(other.work)
        self.add(lambda: other.run(end))


class Event:
    def __init__(self, blocking):
        assert blocking

    def record(self, stream):
        self.stream, self.end = stream, len(stream.work)

    def synchronize(self):
        self.stream.run(self.end)


class Memory(torch.Tensor):
    """Memory that PyTorch hands out again when nobody holds it and the work that it knows of is over."""

    @classmethod
    def take(cls, gpu, pool, shape, dtype):
        key = (cls, pool, tuple(shape), dtype)
        free = gpu.free.setdefault(key, [])
        place = next((i for i, (_, ends) in enumerate(free) if all(s.num_done >= end for s, end in ends)), None)
        content = torch.full(shape, GARBAGE, dtype=dtype) if place is None else free.pop(place)[0]
        memory = content.as_subclass(cls)
        memory.gpu, memory.content, memory.users = gpu, content, set()
        weakref.finalize(memory, cls.give_back, free, content, memory.users)
        return memory

    @staticmethod
    def give_back(free, content, users):
        free.append((content, [(stream, len(stream.work)) for stream in users]))


class PageLocked(Memory):
    """PyTorch knows the copies from and to it."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        memory, gpu = args[0], args[0].gpu
        if function is torch.Tensor.numpy:
            return memory.content.numpy()
        if function is torch.Tensor.to:
            assert kwargs == {"non_blocking": True}
            return gpu.upload(memory)
        if function is torch.Tensor.copy_:
            assert kwargs == {"non_blocking": True}
            source = args[1].content if isinstance(args[1], OnGpu) else args[1].clone()
            memory.users.add(gpu.stream)
            gpu.stream.add(lambda content=memory.content: content.copy_(source))
            return memory
        return super().__torch_function__(function, types, args, kwargs)


class OnGpu(Memory):
    """PyTorch knows only the stream that it was taken on, and those of `record_stream`."""

    def record_stream(self, stream):
        self.users.add(stream)

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        memory, gpu = args[0], args[0].gpu
        with torch._C.DisableTorchFunctionSubclass():
            if function.__name__ == "__get__":
                return function(*args)
            rest, content = args[1:], memory.content
            like = function(content, *rest, **(kwargs or {}))
            result = cls.take(gpu, gpu.stream, like.shape, like.dtype)
            gpu.stream.add(lambda to=result.content: to.copy_(function(content, *rest, **(kwargs or {}))))
            return result


class LateGpu:
    """Replaces torch's CUDA until the test ends.

    Args:
        monkeypatch: pytest's.
        are_copies_early: streams other than the networks' run as early as allowed.
        computes: whether uploaded tensors compute when their stream runs, one operation on one tensor each; otherwise
            they are ordinary ones, and only answers are late.
    """

    def __init__(self, monkeypatch, are_copies_early=False, computes=True):
        self.stream = self.networks = Stream("the networks'")
        self.free, self.computes, self.num_streams = {}, computes, 0
        empty = torch.empty

        def create_stream(device):
            self.num_streams += 1
            return Stream(f"stream {self.num_streams}", are_copies_early)

        def create_empty(*args, pin_memory=False, **options):
            if not pin_memory:
                return empty(*args, **options)
            return PageLocked.take(self, None, *args, **options)

        def wait(*args):
            raise AssertionError("the host waits for all streams")

        monkeypatch.setattr(torch, "empty", create_empty)
        monkeypatch.setattr(torch.cuda, "Stream", create_stream)
        monkeypatch.setattr(torch.cuda, "stream", self.use)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.stream)
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "synchronize", wait)

    @contextmanager
    def use(self, stream):
        before, self.stream = self.stream, stream
        yield
        self.stream = before

    def upload(self, memory):
        if not self.computes:
            return memory.content.clone()
        uploaded = OnGpu.take(self, self.stream, memory.content.shape, memory.content.dtype)
        memory.users.add(self.stream)
        self.stream.add(lambda content=memory.content, to=uploaded.content: to.copy_(content))
        return uploaded
