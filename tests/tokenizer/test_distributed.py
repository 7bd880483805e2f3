"""One process among many: alone nothing changes, a hanging one is named by the others."""

import signal
import threading
from pathlib import Path

import pytest
import torch

from tokenizer.distributed import DistributedContext, Sighting, distributed_context, hang_line, look
from tokenizer.run_control import RunControl


def test_alone_every_call_is_free() -> None:
    dist = DistributedContext()
    dist.wait()
    assert dist.table([1.5, 2.0]).tolist() == [[1.5, 2.0]]
    assert dist.share(6) == range(6)
    tensor = torch.arange(3.0)
    dist.mean_((tensor, None))
    assert dist.gathered(tensor) is tensor
    assert tensor.tolist() == [0, 1, 2]
    assert dist.device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_shares_are_even_and_cover_all(size: int) -> None:
    shares = [DistributedContext(rank=rank, size=size).share(6) for rank in range(size)]
    assert [place for share in shares for place in share] == list(range(6))
    with pytest.raises(AssertionError, match="6 things for 4 processes"):
        DistributedContext(size=4).share(6)


def test_sigterm_or_a_note_asks_for_an_end(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with distributed_context(60) as dist:
        assert not dist.must_stop()
        signal.raise_signal(signal.SIGTERM)
        assert dist.must_stop()
    assert signal.getsignal(signal.SIGTERM) == before
    dist = DistributedContext(control=RunControl(tmp_path))
    assert not dist.must_stop()
    RunControl(tmp_path).request_stop()
    assert (
        DistributedContext(rank=1, control=RunControl(tmp_path)).must_stop() is False
    )  # the first one looks
    assert dist.must_stop()


def test_in_a_thread_there_is_no_signal_to_be_had() -> None:
    seen: list[bool] = []

    def body() -> None:
        with distributed_context(60) as dist:
            seen.append(dist.must_stop())

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [False]


class Notes(dict[str, str]):
    """Stands for the store of a run."""

    def multi_get(self, names: list[str]) -> list[bytes]:
        return [self[name].encode() for name in names]


def test_a_note_that_stays_the_same_keeps_its_time() -> None:
    notes = Notes({"at-0": "step 1, computing", "at-1": "step 1, computing"})
    first = look(notes, "at", 2, [])
    notes["at-1"] = "step 2, making rows"
    second = look(notes, "at", 2, first)
    assert second[0] is first[0]
    assert second[1].note == "step 2, making rows"
    assert second[1].seen >= first[1].seen


def test_the_process_without_life_or_the_one_that_is_behind_is_named() -> None:
    steps = [Sighting(note="step 7, computing", seen=10.0 + rank) for rank in range(3)]
    alive = [Sighting(note="9", seen=80.0) for _ in range(3)]
    assert hang_line(steps, alive, 60) == (
        "process 0 of 3 hangs: no step for 60 s, it was last at 'step 7, computing', the others "
        "wait for it; look at its machine, then go on with --resume latest"
    )
    alive[2] = Sighting(note="3", seen=12.0)
    assert "process 2 of 3 hangs" in hang_line(steps, alive, 60)
    assert "it shows no sign of life" in hang_line(steps, alive, 60)
