"""A batch in parts has the gradients of the whole batch."""

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from a3d_det2.engine.accumulation import losses_in_parts


class Toy(nn.Module):
    """Takes a list of dicts, as Detectron2's detectors do; two losses, each a mean over the images."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.5, -0.25]))
        self.seen = []

    def forward(self, batch):
        self.seen.append([one["image_id"] for one in batch])
        x = torch.stack([one["x"] for one in batch])
        return {"square": (x @ self.weight).square().mean(), "linear": (x @ self.weight).mean()}


@pytest.fixture
def batch():
    values = torch.rand(6, 2, generator=torch.Generator().manual_seed(0))
    return [{"image_id": str(i), "x": x} for i, x in enumerate(values)]


@pytest.mark.parametrize("parts", [1, 2, 3, 6])
def test_losses_and_gradients(batch, parts):
    whole, model = Toy(), Toy()
    expected = whole(batch)
    sum(expected.values()).backward()
    losses = losses_in_parts(model, batch, parts, model)
    sum(losses.values()).backward()
    assert [name for part in model.seen for name in part] == list("012345")
    assert len(model.seen) == parts
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(model.weight.grad, whole.weight.grad)


def test_a_scaled_loss(batch):
    """As a GradScaler does: also that of the last part, by the caller."""
    whole, model = Toy(), Toy()
    sum(whole(batch).values()).backward()
    losses = losses_in_parts(model, batch, 3, model, lambda loss: 1024 * loss)
    (1024 * sum(losses.values())).backward()
    torch.testing.assert_close(model.weight.grad, 1024 * whole.weight.grad)


def test_autocast_is_left_for_the_backward(batch):
    model, dtypes = Toy(), []
    model.weight.register_hook(lambda grad: dtypes.append(torch.is_autocast_enabled("cpu")))
    with torch.autocast("cpu", torch.bfloat16):
        losses_in_parts(model, batch, 3, model)
    assert dtypes == [False, False]


def test_a_batch_that_cannot_be_divided(batch):
    for count, parts in ((6, 4), (2, 3)):
        with pytest.raises(ValueError, match=f"divided into {parts} parts, got one of {count}"):
            losses_in_parts(Toy(), batch[:count], parts, Toy())


def test_processes_exchange_gradients_once(batch, tmp_path):
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model, exchanged = DistributedDataParallel(Toy()), []

        def losses_of(part):
            exchanged.append(model.require_backward_grad_sync)
            return model(part)

        sum(losses_in_parts(model, batch, 3, losses_of).values()).backward()
        assert exchanged == [False, False, True]
    finally:
        distributed.destroy_process_group()


def test_a_step_of_detectron2(batch):
    pytest.importorskip("detectron2")
    from detectron2.utils.events import EventStorage

    from a3d_det2.engine.steps import Step

    models = []
    for parts in (1, 3):
        model = Toy()
        step = Step(model, [batch] * 3, torch.optim.SGD(model.parameters(), 0.1), accumulation=parts)
        with EventStorage(0) as storage:
            for step.iter in range(3):
                step.run_step()
        models.append((model.weight.detach(), storage.latest()["total_loss"][0]))
    torch.testing.assert_close(models[1], models[0])
    with torch.no_grad():
        step.model(batch)  # as Detectron2's PreciseBN calls it
    assert step.model.module.seen[-1] == list("012345")
    step.model.eval()
    assert set(step.model(batch)) == {"square", "linear"}
    assert step.model.module.seen[-1] == list("012345")


def test_trainings(start, tmp_path):
    assert start("SOLVER.IMS_PER_BATCH", 4, "SOLVER.ACCUMULATION", 2, "SOLVER.MAX_ITER", 3) is None
    assert torch.load(tmp_path / "out" / "model_final.pth")["iteration"] == 2
    error = start("SOLVER.IMS_PER_BATCH", 4, "SOLVER.ACCUMULATION", 3)
    assert "SOLVER.ACCUMULATION: expected a divisor of the images of a process, 4, got 3." in error
