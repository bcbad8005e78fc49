"""What a process continues with after a checkpoint of as many, of fewer or of more."""

from toolkit.training.sharded_trainer import own_state


def of(loss: float, *losses: float) -> dict[str, object]:
    return {"loss_sum": loss.hex(), "guard": {"losses": [one.hex() for one in losses], "skipped": 2}}


def test_a_process_of_the_same_number_continues_with_its_own() -> None:
    both = [of(1.0, 2.0), of(3.0, 4.0)]
    assert [own_state(both, rank=rank, processes=2) for rank in range(2)] == both


def test_processes_of_another_number_continue_with_the_mean_which_is_the_loss_of_the_step() -> None:
    both = [of(1.0, 2.0, 5.0), of(3.0, 4.0, 6.0)]
    for processes in (1, 3):
        for rank in range(processes):
            assert own_state(both, rank=rank, processes=processes) == of(2.0, 3.0, 5.5)
